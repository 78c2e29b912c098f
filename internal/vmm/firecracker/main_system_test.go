//go:build linux && amd64 && system

package firecracker

import (
	"testing"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }
