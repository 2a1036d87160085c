package source

import (
	"fmt"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

func noColumn(s *record.Schema, name string, i int) error {
	return athena.Errorf(athena.CodeInvalidRequest, "source.columns[%d] is %.80q, which the source does not have; its columns are %.2000s", i, name, strings.Join(s.Names(), ", ")).
		At(fmt.Sprintf("source.columns[%d]", i))
}
