package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/localpg"
)

//go:embed shop.sql
var shopSQL string

// sampleDatabase is the name of the sample shop.
const sampleDatabase = "shop"

// ensureShop makes the sample shop, whole or not at all, if it is not there.
func ensureShop(ctx context.Context, pg *localpg.Server) error {
	const unfinished = sampleDatabase + "_unfinished"
	admin, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	var there bool
	if err := admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, sampleDatabase).Scan(&there); err != nil || there {
		return err
	}
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + unfinished + " WITH (FORCE)", "CREATE DATABASE " + unfinished} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := fillShop(ctx, pg.DSN(unfinished)); err != nil {
		return fmt.Errorf("fill the sample database: %w", err)
	}
	_, err = admin.Exec(ctx, "ALTER DATABASE "+unfinished+" RENAME TO "+sampleDatabase)
	return err
}

func fillShop(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, shopSQL) // without parameters: several statements are one transaction
	return errors.Join(err, conn.Close(ctx))
}
