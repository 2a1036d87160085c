package main

import (
	"slices"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
)

// drivers are the engines that this build can open. This is the one place that
// names them.
func drivers() map[athena.Engine]driver.Driver {
	return map[athena.Engine]driver.Driver{
		athena.EnginePostgres: driver.New(postgres.Open),
	}
}

// engines lists what drivers has, in the order of the domain.
func engines() []athena.Engine {
	all := drivers()
	return slices.DeleteFunc(athena.Engines(), func(e athena.Engine) bool { _, ok := all[e]; return !ok })
}
