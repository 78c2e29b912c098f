//go:build linux && amd64

package firecracker

import (
	"testing"

	"github.com/hatchvm/hatch/internal/vmm"
)

func TestImpossibleFiguresOfAGuestsMemoryAreIgnored(t *testing.T) {
	for name, c := range map[string]struct {
		answer answer
		want   vmm.GuestMemory
	}{
		"figures":                   {answer{200, `{"target_pages":0,"total_memory":300,"free_memory":100,"available_memory":200}`}, vmm.GuestMemory{Total: 300, Available: 200}},
		"nothing":                   {answer{200, `{"target_pages":0}`}, vmm.GuestMemory{}},
		"no balloon":                {answer{400, `{"fault_message":"none"}`}, vmm.GuestMemory{}},
		"half of it":                {answer{200, `{"total_memory":300,"free_memory":100}`}, vmm.GuestMemory{}},
		"more than it has":          {answer{200, `{"total_memory":100,"available_memory":200}`}, vmm.GuestMemory{}},
		"more than any machine has": {answer{200, `{"total_memory":18446744073709551615,"available_memory":1}`}, vmm.GuestMemory{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeAPI(t, map[string]answer{"GET /balloon/statistics": c.answer})
			if got, err := newAPI(p.root).guestMemory(t.Context()); err != nil || got != c.want {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		})
	}
	p := newFakeAPI(t, map[string]answer{"GET /balloon/statistics": {200, `{"total_memory":-1}`}})
	if got, err := newAPI(p.root).guestMemory(t.Context()); err == nil {
		t.Errorf("a negative figure was read as %+v", got)
	}
}
