//go:build system

package nft

import (
	"testing"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }
