package power

import (
	"testing"

	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestEveryExitHasAReason(t *testing.T) {
	want := map[vmm.ExitCause]vm.State{
		vmm.ExitShutdown: vm.Stopped, vmm.ExitKilled: vm.Stopped, vmm.ExitPanic: vm.Failed,
		vmm.ExitCrashed: vm.Failed, vmm.ExitReset: vm.Failed, vmm.ExitUnknown: vm.Failed,
	}
	for cause, state := range want {
		got, reason := afterExit(vmm.Exit{Cause: cause, Detail: "killed by signal 9"})
		if got != state || reason == "" {
			t.Errorf("%s: got %s %q, want %s and a reason", cause, got, reason, state)
		}
	}
}
