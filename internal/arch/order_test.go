package arch

import (
	"slices"
	"strings"
	"testing"
)

// nounOrder is the order of the nouns: each may import those before it in the list and
// none after it, so that there are no cycles.
var nounOrder = []string{
	"internal/access",
	"internal/secret",
	"internal/sshca",
	"internal/quota",
	"internal/audit",
	"internal/event",
	"internal/idempotency",
	"internal/image/unpack",
	"internal/image",
	"internal/image/kernel",
	"internal/network",
	"internal/route",
	"internal/disk",
	"internal/machine",
	"internal/process",
	"internal/file",
	"internal/template",
	"internal/webhook",
	"internal/snapshot",
	"internal/vm",
	"internal/vm/operation",
	"internal/vm/live",
	"internal/vm/capacity",
	"internal/vm/transition",
	"internal/vm/power",
	"internal/vm/hostpower",
	"internal/vm/clone",
	"internal/vm/recovery",
	"internal/reach",
	"internal/idle",
	"internal/vm/lifecycle",
	"internal/warm",
}

func TestNounsImportDownwards(t *testing.T) {
	for _, p := range packages(t) {
		if l, _ := layerOf(p.dir); l.name != "nouns" {
			continue
		}
		place := slices.Index(nounOrder, p.dir)
		if place < 0 {
			t.Errorf("%s: is a noun that is not listed; add it to nounOrder in internal/arch/order_test.go, below what it imports", p.dir)
			continue
		}
		for _, f := range p.code() {
			for _, imported := range f.imports() {
				other := slices.Index(nounOrder, strings.TrimPrefix(imported, module+"/"))
				if other > place {
					t.Errorf("%s: imports %s, which is below it in the order of nouns; declare the small interface you need, and let the package below implement it",
						f.path, imported)
				}
			}
		}
	}
}

// TestVMsPhaseIsChangedInOnePlace keeps other packages from setting the fields of a
// VM's phase: internal/vm/phase.go changes them together.
func TestVMsPhaseIsChangedInOnePlace(t *testing.T) {
	for _, p := range packages(t) {
		if l, _ := layerOf(p.dir); l.name != "nouns" || p.dir == "internal/vm" {
			continue
		}
		for _, f := range p.code() {
			for _, field := range assigned(f) {
				if slices.Contains([]string{"Intent", "StateReason", "Unconfirmed", "Sleep", "Provisioned", "Autostart"}, field) {
					t.Errorf("%s: sets %s of a VM; use, or add, a function To… in internal/vm/phase.go", f.path, field)
				}
			}
		}
	}
}
