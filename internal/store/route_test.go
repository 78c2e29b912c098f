package store

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/vm"
)

// fullRoute has a value in every field of a route with a subdomain.
func fullRoute(vmID, subdomain string) route.Route {
	return route.New("acc_a", vmID, route.Spec{
		Subdomain: subdomain, Port: 8080, NoWake: true, Auth: route.Auth{Mode: route.Basic, Username: "me", Hash: []byte("\x00\xff")},
		Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Upstream: route.H2C, ResponseTimeout: time.Minute,
	})
}

func domainRoute(vmID, domain string, verified bool) route.Route {
	r := route.New("acc_a", vmID, route.Spec{Domain: domain, Port: 80, Auth: route.Auth{Mode: route.Public}, Upstream: route.HTTP1})
	if verified {
		r.VerifiedAt = &r.CreatedAt
	}
	return r
}

func insertRoute(t testing.TB, s *Store, r route.Route) route.Route {
	t.Helper()
	r, err := s.InsertRoute(context.Background(), access.Everyone, r, 10)
	noError(t, err)
	return r
}

func anyRoute(route.Route) error { return nil }

func eventTypes(t testing.TB, s *Store, vmID string) string {
	t.Helper()
	page, _, err := s.Events(context.Background(), event.Filter{Scope: access.Everyone, VMID: vmID, Limit: 100})
	noError(t, err)
	var types []string
	for _, e := range page {
		types = append(types, string(e.Type))
	}
	return strings.Join(types, " ")
}

func TestRoutes(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, owner, other := t.Context(), access.Owner("acc_a"), access.Owner("acc_b")
		account(t, s, "acc_b")
		v := createVM(t, s, newVM("vm_a"))
		want := fullRoute("vm_a", "web")
		want.OwnerID = "acc_wrong"
		_, err := s.InsertRoute(ctx, other, want, 10)
		hasCode(t, err, errs.NotFound, "vm_not_found")
		want = insertRoute(t, s, want)
		equal(t, want.OwnerID, "acc_a")
		got, err := s.Route(ctx, owner, want.ID)
		noError(t, err)
		equal(t, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		touched, err := s.VM(ctx, owner, "vm_a")
		noError(t, err)
		if touched.Revision <= v.Revision || !touched.UpdatedAt.After(v.UpdatedAt) {
			t.Error("a new route is no change of the VM")
		}

		for _, id := range []string{want.ID, "rt_none", "\x00"} {
			_, err = s.Route(ctx, other, id)
			hasCode(t, err, errs.NotFound, "route_not_found")
			_, err = s.UpdateRoute(ctx, other, id, anyChange)
			hasCode(t, err, errs.NotFound, "route_not_found")
			hasCode(t, s.DeleteRoute(ctx, other, id, anyRoute), errs.NotFound, "route_not_found")
		}
		for _, vmID := range []string{"vm_a", ""} {
			if all, err := s.Routes(ctx, other, vmID); err != nil || len(all) > 0 {
				t.Errorf("another owner sees %v, %v", all, err)
			}
		}

		changed, err := s.UpdateRoute(ctx, owner, want.ID, func(r *route.Route) error { r.Subdomain, r.Port = "www2", 81; return nil })
		noError(t, err)
		if changed.Subdomain != "www2" || changed.Port != 81 || !changed.UpdatedAt.After(want.UpdatedAt) || string(changed.Auth.Hash) != "\x00\xff" {
			t.Errorf("changed to %+v", changed)
		}
		second := fullRoute("vm_a", "second")
		second.CreatedAt = second.CreatedAt.Add(time.Second)
		insertRoute(t, s, second)
		for _, vmID := range []string{"", "vm_a"} {
			all, err := s.Routes(ctx, owner, vmID)
			noError(t, err)
			if len(all) != 2 || all[0].ID != second.ID {
				t.Errorf("the list is %+v", all)
			}
		}
		if n, err := s.CountRoutes(ctx, owner); err != nil || n != 2 {
			t.Errorf("%d routes, %v", n, err)
		}
		refused := errs.New(errs.Unmet, "no", "no")
		hasCode(t, s.DeleteRoute(ctx, owner, second.ID, func(route.Route) error { return refused }), errs.Unmet, "no")
		noError(t, s.DeleteRoute(ctx, owner, second.ID, anyRoute))
		noError(t, s.DeleteVM(ctx, "vm_a"))
		if n := count(t, s, "routes"); n > 0 {
			t.Errorf("%d routes are left of a deleted VM", n)
		}
		equal(t, eventTypes(t, s, "vm_a"), "vm.created route.created route.updated route.created route.deleted route.deleted vm.deleted")
	})
}

func anyChange(*route.Route) error { return nil }

func TestASubdomainIsOfOneRoute(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		createVM(t, s, newVM("vm_a"))
		var g errgroup.Group
		outcomes := make([]error, 8)
		for i := range outcomes {
			g.Go(func() error {
				_, outcomes[i] = s.InsertRoute(ctx, access.Everyone, fullRoute("vm_a", "web"), 10)
				return nil
			})
		}
		noError(t, g.Wait())
		free := slices.DeleteFunc(outcomes, func(err error) bool { return errs.HasCode(err, "subdomain_taken") })
		if len(free) != 1 || free[0] != nil {
			t.Errorf("not refused: %v", free)
		}
		other := insertRoute(t, s, fullRoute("vm_a", "other"))
		_, err := s.UpdateRoute(ctx, access.Everyone, other.ID, func(r *route.Route) error { r.Subdomain = "web"; return nil })
		hasCode(t, err, errs.Conflict, "subdomain_taken")
	})
}

func TestRoutesOfAVMAreCounted(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		var g errgroup.Group
		for i := range 10 {
			g.Go(func() error {
				_, err := s.InsertRoute(t.Context(), access.Everyone, fullRoute("vm_a", fmt.Sprintf("web%d", i)), 4)
				if !errs.HasCode(err, "too_many_routes") {
					return err
				}
				return nil
			})
		}
		noError(t, g.Wait())
		equal(t, count(t, s, "routes"), 4)
	})
}

// A VM and its routes are stored together, or neither.
func TestRoutesOfANewVM(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		v := newVM("vm_a")
		v.Routes = []route.Route{fullRoute("vm_a", "web"), fullRoute("vm_a", "")}
		stored := createVM(t, s, v)
		equal(t, len(stored.Routes), 2)
		equal(t, count(t, s, "routes"), 2)
		equal(t, eventTypes(t, s, "vm_a"), "vm.created route.created route.created")
		v = newVM("vm_b")
		v.Routes = []route.Route{fullRoute("vm_b", "free"), fullRoute("vm_b", "web")}
		_, err := s.CreateVM(ctx, v, network.Request{}, pools(t), vm.Capacity{})
		hasCode(t, err, errs.Conflict, "subdomain_taken")
		if e, _ := errs.As(err); e.Field != "routes[1].subdomain" || !strings.HasPrefix(e.Message, "routes[1].subdomain: ") {
			t.Errorf("the error is about %q: %s", e.Field, e.Message)
		}
		equal(t, count(t, s, "routes"), 2)
		equal(t, count(t, s, "vms"), 1)
	})
}

// An unverified domain is not served, and does not keep another owner from it.
func TestDomains(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		createVM(t, s, newVM("vm_a"))
		first := insertRoute(t, s, domainRoute("vm_a", "www.example.org", false))
		second := insertRoute(t, s, domainRoute("vm_a", "www.example.org", false))
		_, _, err := s.ServedRoute(ctx, "", "www.example.org")
		hasCode(t, err, errs.NotFound, "route_not_found")
		verify := func(r *route.Route) error { at := now(); r.VerifiedAt = &at; return nil }
		_, err = s.UpdateRoute(ctx, access.Everyone, second.ID, verify)
		noError(t, err)
		served, _, err := s.ServedRoute(ctx, "", "www.example.org")
		noError(t, err)
		equal(t, served.ID, second.ID)
		_, err = s.UpdateRoute(ctx, access.Everyone, first.ID, verify)
		hasCode(t, err, errs.Conflict, "domain_taken")
		_, err = s.InsertRoute(ctx, access.Everyone, domainRoute("vm_a", "www.example.org", true), 10)
		hasCode(t, err, errs.Conflict, "domain_taken")
	})
}

func TestVMNamed(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		create := func(id, owner, name string) {
			v := newVM(id)
			v.OwnerID, v.Name = owner, name
			createVM(t, s, v)
		}
		create("vm_a", "acc_a", "one")
		create("vm_b", "acc_a", "both")
		create("vm_c", "acc_b", "both")
		create("vm_d", "acc_b", "vm-a") // as a host name says the id of another VM
		create("vm_e", "acc_b", "")
		for name, want := range map[string]string{"one": "vm_a", "both": "", "vm-a": "vm_a", "vm-e": "vm_e", "": "", "none": "", "vm-\x00": ""} {
			id := ""
			if rest, ok := strings.CutPrefix(name, "vm-"); ok {
				id = "vm_" + rest
			}
			v, err := s.VMNamed(ctx, id, name)
			if v.ID != want || (want == "") != errs.HasCode(err, "vm_not_found") {
				t.Errorf("%q leads to %q, %v, want %q", name, v.ID, err, want)
			}
		}
	})
}

func TestLinks(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, owner := t.Context(), access.Owner("acc_a")
		createVM(t, s, newVM("vm_a"))
		insertRoute(t, s, fullRoute("vm_a", "web"))
		for want := range int64(3) {
			v, err := s.LinkedVM(ctx, owner, "vm_a")
			noError(t, err)
			equal(t, v, route.VM{ID: "vm_a", OwnerID: "acc_a", Generation: want})
			_, served, err := s.ServedRoute(ctx, "web", "")
			noError(t, err)
			equal(t, served, v)
			noError(t, s.EndLinks(ctx, owner, "vm_a"))
		}
		hasCode(t, s.EndLinks(ctx, access.Owner("acc_b"), "vm_a"), errs.NotFound, "vm_not_found")
		for range 2 {
			secret, err := s.LinkSecret(ctx, bytes.Repeat([]byte{0xff}, 32))
			noError(t, err)
			again, err := s.LinkSecret(ctx, []byte("other"))
			noError(t, err)
			equal(t, string(again), string(secret))
		}
	})
}

// Each change that a host name may follow raises the version; others do not, so that
// doors need not look names up again.
func TestNamesVersion(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, all := t.Context(), access.Everyone
		account(t, s, "acc_b")
		var r route.Route
		unnamed := newVM("vm_b")
		unnamed.Name = ""
		for _, c := range []struct {
			what string
			do   func() error
			want uint64
		}{
			{"a VM with a name", func() error { createVM(t, s, newVM("vm_a")); return nil }, 1},
			{"a VM without a name", func() error { createVM(t, s, unnamed); return nil }, 0},
			{"a new state", func() error {
				_, err := s.UpdateVM(ctx, "vm_a", func(v *vm.VM) { v.State = vm.Running })
				return err
			}, 0},
			{"a new route", func() error { r = insertRoute(t, s, fullRoute("vm_a", "web")); return nil }, 1},
			{"a changed route", func() error { _, err := s.UpdateRoute(ctx, all, r.ID, anyChange); return err }, 1},
			{"ended links", func() error { return s.EndLinks(ctx, all, "vm_a") }, 1},
			{"a deleted route", func() error { return s.DeleteRoute(ctx, all, r.ID, anyRoute) }, 1},
			{"a new description", func() error {
				_, err := s.ReviseVM(ctx, all, "vm_a", pools(t), func(v *vm.VM) error { v.Description = "d"; return nil })
				return err
			}, 0},
			{"a new name", func() error {
				_, err := s.ReviseVM(ctx, all, "vm_a", pools(t), func(v *vm.VM) error { v.Name = "other"; return nil })
				return err
			}, 1},
			{"a deleted VM", func() error { return s.DeleteVM(ctx, "vm_a") }, 1},
		} {
			before := s.NamesVersion()
			noError(t, c.do())
			if got := s.NamesVersion() - before; got != c.want {
				t.Errorf("%s: the version goes up by %d, want %d", c.what, got, c.want)
			}
		}
	})
}

// What a VM's owner decides about implicit names is found with the VM, and counts as a
// change of names.
func TestImplicitNamesOfVMs(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, owner := t.Context(), access.Owner("acc_a")
		v := createVM(t, s, newVM("vm_a"))
		named, err := s.VMNamed(ctx, v.ID, "")
		noError(t, err)
		equal(t, named.Implicit, route.ServersChoice)
		before := s.NamesVersion()
		_, err = s.ReviseVM(ctx, owner, v.ID, pools(t), func(v *vm.VM) error { v.ImplicitRoutes = route.ImplicitOff; return nil })
		noError(t, err)
		linked, err := s.LinkedVM(ctx, owner, v.ID)
		noError(t, err)
		if linked.Implicit != route.ImplicitOff || s.NamesVersion() == before {
			t.Errorf("%+v, names of version %d, before %d", linked, s.NamesVersion(), before)
		}
	})
}
