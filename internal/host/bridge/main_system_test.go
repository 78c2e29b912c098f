//go:build system

package bridge

import (
	"testing"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }
