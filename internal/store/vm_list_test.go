package store

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// list returns the ids of a page, and its cursor.
func list(t testing.TB, s *Store, f vm.Filter) (ids, next string) {
	t.Helper()
	page, next, err := s.VMs(t.Context(), access.Owner("acc_a"), f)
	noError(t, err)
	var all []string
	for _, v := range page {
		all = append(all, strings.TrimPrefix(v.ID, vm.IDPrefix))
	}
	return strings.Join(all, " "), next
}

// five makes vm_1 to vm_5, the last the newest; 3 and 4 are of one time.
func five(t testing.TB, s *Store) {
	t.Helper()
	at := now()
	for i := 1; i <= 5; i++ {
		v := newVM(fmt.Sprintf("vm_%d", i))
		v.CreatedAt = at.Add(time.Duration(i) * time.Second)
		if i == 4 {
			v.CreatedAt = at.Add(3 * time.Second)
		}
		v.Labels["odd"] = fmt.Sprint(i%2 == 1)
		if i > 3 {
			v.State = vm.Stopped
		}
		createVM(t, s, v)
	}
}

func TestListIsNewestFirst(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		five(t, s)
		if ids, next := list(t, s, vm.Filter{}); ids != "5 4 3 2 1" || next != "" {
			t.Errorf("%s, next %q", ids, next)
		}
	})
}

func TestListFilters(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		five(t, s)
		for want, f := range map[string]vm.Filter{
			"5 4":   {State: vm.Stopped},
			"2":     {Name: "name-2"},
			"5 3 1": {Labels: map[string]string{"odd": "true", "team": "a"}},
			"4":     {Labels: map[string]string{"odd": "false"}, State: vm.Stopped},
			"":      {Labels: map[string]string{"odd": "true", "team": "b"}},

			"4 2":       {HasLabels: []string{"odd", "team"}, NotLabels: []vm.Label{{Key: "odd", Value: "true"}}},
			"5 4 3 2 1": {HasLabels: []string{"odd"}, NotLabels: []vm.Label{{Key: "none", Value: "x"}, {Key: "odd", Value: "\x00"}}},
		} {
			if ids, _ := list(t, s, f); ids != want {
				t.Errorf("%+v: %q, want %q", f, ids, want)
			}
		}
		for _, f := range []vm.Filter{{Name: "\x00"}, {State: "\xff"}, {Labels: map[string]string{"a": "\x00"}}, {HasLabels: []string{"none"}}, {HasLabels: []string{"\xff"}}, {Name: "' OR 1=1 --"}} {
			if ids, _ := list(t, s, f); ids != "" {
				t.Errorf("%+v: %q", f, ids)
			}
		}
	})
}

func TestListPages(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		five(t, s)
		first, next := list(t, s, vm.Filter{Limit: 2})
		if first != "5 4" || next == "" || len(next) > 64 {
			t.Fatalf("%q, next %q", first, next)
		}
		noError(t, s.DeleteVM(t.Context(), "vm_4")) // the cursor was taken from it
		second, next := list(t, s, vm.Filter{Limit: 2, After: next})
		if second != "3 2" || next == "" {
			t.Fatalf("%q, next %q", second, next)
		}
		if third, next := list(t, s, vm.Filter{Limit: 2, After: next}); third != "1" || next != "" {
			t.Errorf("%q, next %q", third, next)
		}
		if all, next := list(t, s, vm.Filter{Limit: 4}); all != "5 3 2 1" || next != "" {
			t.Errorf("a full last page: %q, next %q", all, next)
		}
	})
}

func TestListRefusesInvalidCursors(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		for _, after := range []string{"vm_a", "%", "MQ", cursor{1, "\x00"}.String(), strings.Repeat("A", 1<<16)} {
			_, _, err := s.VMs(t.Context(), access.Owner("acc_a"), vm.Filter{After: after})
			hasCode(t, err, errs.Invalid, "invalid_after")
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	f.Add("")
	f.Add(cursor{1_700_000_000_000_000, "vm_abc123def456"}.String())
	f.Add("LTEuYQ")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCursor(text)
		if err != nil || text == "" {
			return
		}
		if again, err := parseCursor(c.String()); err != nil || again != c {
			t.Errorf("%q reads as %+v, and that as %+v, %v", text, c, again, err)
		}
	})
}

// Cached VMs of lists must never be older than the database, nor shared.
func TestListShowsChanges(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		want := createVM(t, s, newVM("vm_a"))
		want.UserData = "" // not in lists
		listed := func() vm.VM {
			t.Helper()
			page, _, err := s.VMs(t.Context(), access.Owner("acc_a"), vm.Filter{})
			noError(t, err)
			if len(page) != 1 {
				t.Fatalf("%d VMs", len(page))
			}
			return page[0]
		}
		got := listed()
		same(t, got, want)
		got.Labels["team"], got.SSHKeys[0], got.Lease.MAC[0], got.Machine.PID = "changed", "changed", 0xFF, 1
		*got.StartedAt = time.Time{}
		same(t, listed(), want)

		_, err := s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) { v.State = vm.Stopped })
		noError(t, err)
		if got := listed(); got.State != vm.Stopped {
			t.Errorf("state %s after an update", got.State)
		}
		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		if got := listed(); !reflect.DeepEqual(got.Lease, network.Lease{}) {
			t.Errorf("lease %+v after a release", got.Lease)
		}
		_, err = s.LeaseVM(t.Context(), "vm_a", pools(t), vm.Capacity{})
		noError(t, err)
		if got := listed(); got.State != vm.Starting || !got.Lease.Address.IsValid() {
			t.Errorf("%s %+v after a lease", got.State, got.Lease)
		}
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		if page, _, err := s.VMs(t.Context(), access.Owner("acc_a"), vm.Filter{}); err != nil || len(page) != 0 {
			t.Errorf("%v, %v after a delete", page, err)
		}
		if len(s.listed.by) != 0 {
			t.Error("a deleted VM is still cached")
		}
	})
}

func BenchmarkList1000(b *testing.B) {
	for _, db := range backends() {
		b.Run(db.name, func(b *testing.B) {
			s := open(b, db.dsn(b))
			many(b, s, 1000)
			for name, f := range map[string]vm.Filter{"all": {}, "label": {Labels: map[string]string{"team": "a"}}, "page": {Limit: 100}} {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						if _, _, err := s.VMs(b.Context(), access.Owner("acc_a"), f); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			b.Run("all changed", func(b *testing.B) {
				for b.Loop() {
					s.listed = newListed()
					if _, _, err := s.VMs(b.Context(), access.Owner("acc_a"), vm.Filter{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
