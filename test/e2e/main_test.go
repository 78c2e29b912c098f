//go:build system

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/test/sandbox"
)

// TestMain runs each top-level test in a sandbox of its own, at the same time.
func TestMain(m *testing.M) {
	os.Exit(sandbox.RunTests(m, "TestRealGuests", "TestMinimalGuests", "TestSnapshots", "TestFirecracker"))
}

// repository is the root of the checkout.
func repository() string {
	here, err := os.Getwd()
	if err != nil {
		panic(err) // a test's working directory is its package's
	}
	return filepath.Join(here, "..", "..")
}
