//go:build system

package link

import (
	"testing"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }
