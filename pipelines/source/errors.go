package source

import (
	"fmt"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

func noColumn(s *record.Schema, name string, i int) error {
	meant := ""
	if near := spec.Nearest(name, s.Names()); near != "" {
		meant = fmt.Sprintf("; did you mean %q?", near)
	}
	return athena.Errorf(athena.CodeInvalidRequest, "the source has no column %.80q%s; its columns are %.2000s", name, meant, strings.Join(s.Names(), ", ")).
		At(fmt.Sprintf("source.columns[%d]", i))
}
