package quota

import (
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

// Each resource has a limit, a hint and an error that says used, asked and allowed.
func TestEachResourceIsLimited(t *testing.T) {
	for _, r := range Resources {
		limits := Limits{r: 5}
		if err := limits.Check(Amounts{r: 3}, Amounts{r: 2}); err != nil {
			t.Errorf("%s: up to the limit: %v", r, err)
		}
		err := limits.Check(Amounts{r: 3}, Amounts{r: 4})
		e, ok := errs.As(err)
		if !ok || e.Kind != errs.Forbidden || e.Code != Code || e.Field != string(r) || !strings.Contains(e.Message, "3 used, 4 asked for, 5 allowed") {
			t.Errorf("%s: over the limit: %v", r, err)
		}
		if hints[r] == "" {
			t.Errorf("%s: no hint says what to do", r)
		}
		if err := (Limits{}).Check(Amounts{r: 1 << 50}, Amounts{r: 1}); err != nil {
			t.Errorf("%s: without a limit: %v", r, err)
		}
		if err := limits.Check(Amounts{r: 9}, Amounts{r: -1}); err != nil {
			t.Errorf("%s: less than before: %v", r, err)
		}
	}
}

func TestAUsersOwnLimitsReplaceTheServers(t *testing.T) {
	server := Limits{VMs: 5, Routes: 3, Webhooks: 2}
	got := server.With(Own{VMs: 9, Routes: Unlimited, Disk: 0})
	if _, limited := got[Routes]; limited || got[VMs] != 9 || got[Webhooks] != 2 || !got.Limited(Amounts{Disk: 1}) {
		t.Errorf("got %v", got)
	}
	if server[VMs] != 5 || Limits(nil).With(Own{VMs: 1})[VMs] != 1 {
		t.Error("the server's limits have changed, or a user's own do not count without them")
	}
	for _, wrong := range []int64{-2, Most + 1} {
		if err := (Own{VMs: wrong}).Check(); !errs.HasCode(err, "invalid_vms") {
			t.Errorf("%d: %v", wrong, err)
		}
	}
}
