//go:build system

package nft

import (
	"os"
	"testing"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m.Run)) }
