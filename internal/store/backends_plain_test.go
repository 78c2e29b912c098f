//go:build !system

package store

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backends are the databases that every test runs on. The system build adds
// PostgreSQL.
func backends() []backend { return []backend{{"sqlite", sqliteDSNFor}} }

// backend makes empty databases.
type backend struct {
	name string
	dsn  func(t testing.TB) string
}
