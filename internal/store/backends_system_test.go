//go:build system

package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/store/storetest/postgres"
)

// backend makes empty databases.
type backend struct {
	name string
	dsn  func(t testing.TB) string
}

// backends are the databases that every test runs on.
func backends() []backend {
	return []backend{{"sqlite", sqliteDSNFor}, {"postgres", postgresDSNFor}}
}

// cluster starts the PostgreSQL server of this test run, once; TestMain ends it.
var cluster = sync.OnceValues(postgres.Start)

// databases is how many were made in it.
var databases atomic.Int64

func TestMain(m *testing.M) {
	if dsn := os.Getenv(holdDatabase); dsn != "" {
		hold(dsn)
	}
	m.Run()
	if server, err := cluster(); err == nil {
		if err := server.End(); err != nil {
			panic(fmt.Errorf("cannot end PostgreSQL: %w", err))
		}
	}
}

func postgresDSNFor(t testing.TB) string {
	t.Helper()
	server, err := cluster()
	if err != nil {
		t.Fatalf("cannot start PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("t%d", databases.Add(1))
	admin, err := sql.Open("pgx", server.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return server.DSN(name)
}
