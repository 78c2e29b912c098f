//go:build system

package link

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) {
	os.Exit(nettest.Main(func() int {
		code := m.Run()
		if err := goleak.Find(); code == 0 && err != nil {
			println(err.Error())
			return 1
		}
		return code
	}))
}
