//go:build system

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/test/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.Run(m.Run)) }

// repository is the root of the checkout.
func repository() string {
	here, err := os.Getwd()
	if err != nil {
		panic(err) // a test's working directory is its package's
	}
	return filepath.Join(here, "..", "..")
}
