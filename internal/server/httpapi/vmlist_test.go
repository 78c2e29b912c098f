package httpapi

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const awkward = "a\"\\\n\t\x01\x7f<&>ä\u2028\xff😀"

func TestListIsEncodedAsOtherAnswers(t *testing.T) {
	at := time.Date(2026, 3, 6, 12, 0, 0, 120_456_000, time.UTC)
	page := []vm.VM{
		{ID: "vm_a", Revision: 1, StateReason: awkward, CreatedAt: at, UpdatedAt: at, StartedAt: &at, Spec: machine.Spec{Labels: map[string]string{awkward: awkward}}},
		{ID: "vm_b"},
	}
	var want bytes.Buffer
	if err := jsonFormat.Marshal(&want, []api.VM{listedVM(page[0]), listedVM(page[1])}); err != nil {
		t.Fatal(err)
	}
	var e encodedVMs
	for range 2 { // encoded, and remembered
		requireList(t, &e, page, want.String())
	}
	requireList(t, &e, nil, "[]\n")
}

func TestListCachesNoOlderRevision(t *testing.T) {
	var e encodedVMs
	v := vm.VM{ID: "vm_a", Revision: 1, State: vm.Running}
	for range 2 * maxEncoded / 1000 { // more VMs than are remembered
		page := make([]vm.VM, 1000)
		for i := range page {
			page[i] = vm.VM{ID: string(rune('a' + i)), Revision: v.Revision}
		}
		page[0] = v
		if got := states(t, &e, page); got[0] != string(v.State) {
			t.Fatalf("revision %d is %s, want %s", v.Revision, got[0], v.State)
		}
		v.Revision++
		v.State = map[vm.State]vm.State{vm.Running: vm.Stopped, vm.Stopped: vm.Running}[v.State]
	}
	v.Revision = 0
	for _, state := range []vm.State{vm.Paused, vm.Failed} {
		v.State = state
		if got := states(t, &e, []vm.VM{v}); got[0] != string(state) {
			t.Errorf("a VM without a revision is %s, want %s", got[0], state)
		}
	}
}

func requireList(t *testing.T, e *encodedVMs, page []vm.VM, want string) {
	t.Helper()
	got, err := e.list(page, noUse)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func states(t *testing.T, e *encodedVMs, page []vm.VM) (all []string) {
	t.Helper()
	text, err := e.list(page, noUse)
	if err != nil {
		t.Fatal(err)
	}
	var vms []api.VM
	if err := json.Unmarshal(text, &vms); err != nil {
		t.Fatal(err)
	}
	for _, v := range vms {
		all = append(all, v.State)
	}
	return all
}

func noUse(vm.VM) api.Use { return api.Use{} }

// How VMs are used is not cached with the rest of them, and follows it.
func TestAListShowsTheUseAsItIs(t *testing.T) {
	var e encodedVMs
	v := vm.VM{ID: "vm_a", Revision: 1}
	for _, cause := range []string{"exec", "ssh"} {
		text, err := e.list([]vm.VM{v, v}, func(vm.VM) api.Use { return api.Use{LastActivity: &api.Activity{Cause: cause}} })
		var got []api.VM
		if err == nil {
			err = json.Unmarshal(text, &got)
		}
		if err != nil || len(got) != 2 || got[1].ID != v.ID || got[1].LastActivity == nil || got[1].LastActivity.Cause != cause {
			t.Errorf("%s: %v", text, err)
		}
	}
}
