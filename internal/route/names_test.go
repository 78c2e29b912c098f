package route_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

func TestDecideAllNamesTheRoute(t *testing.T) {
	w := newWorld(t)
	at := func(specs ...route.Spec) (drafts []route.Draft) {
		for _, s := range specs {
			drafts = append(drafts, route.Draft{Spec: s})
		}
		return drafts
	}
	for _, c := range []struct {
		drafts      []route.Draft
		code, field string
	}{
		{at(route.Spec{Port: 80, Subdomain: "web"}, route.Spec{Port: 81, Subdomain: "web"}), "invalid_subdomain", "routes[1].subdomain"},
		{at(route.Spec{Port: 80, Domain: "www.example.org"}, route.Spec{Port: 81, Domain: "www.example.org"}), "invalid_domain", "routes[1].domain"},
		{at(route.Spec{Port: 80, Domain: "x.localhost"}), "invalid_domain", "routes[0].domain"},
		{slices.Repeat(at(route.Spec{Port: 80}), route.MaxPerVM+1), "invalid_routes", "routes"},
	} {
		_, err := w.DecideAll(c.drafts)
		if e, ok := errs.As(err); !ok || e.Code != c.code || e.Field != c.field {
			t.Errorf("%+v: %v, want %s of %s", c.drafts, err, c.code, c.field)
		}
	}
	specs, err := w.DecideAll(at(route.Spec{Port: 80}, route.Spec{Port: 81}, route.Spec{Port: 82, Domain: "www.example.org"}))
	if err != nil || len(specs) != 3 || specs[2].Domain != "www.example.org" {
		t.Errorf("%+v, %v", specs, err)
	}
}

// A VM's owner decides whether implicit names lead to it; else the server does.
func TestImplicitNamesAreTheOwnersChoice(t *testing.T) {
	for _, c := range []struct {
		server bool
		choice route.Implicit
		leads  bool
	}{
		{true, route.ServersChoice, true},
		{true, route.ImplicitOn, true},
		{true, route.ImplicitOff, false},
		{false, route.ServersChoice, false},
		{false, route.ImplicitOn, true},
		{false, route.ImplicitOff, false},
	} {
		w := newWorld(t)
		w.cfg.Implicit = c.server
		w.open(t)
		for i := range w.store.vms {
			w.store.vms[i].Implicit = c.choice
		}
		target, err := w.Resolve(t.Context(), "80-vm-a.localhost")
		if (err == nil) != c.leads || err == nil && target.Auth.Mode != route.Key || err != nil && !errors.Is(err, route.ErrUnknown) {
			t.Errorf("%+v: %+v, %v", c, target, err)
		}
		link, _, err := w.Share(t.Context(), access.Owner("acc_a"), "vm_a", 80, time.Hour)
		if (err == nil) != c.leads {
			t.Errorf("%+v: shared as %q, %v", c, link, err)
		}
	}
}

func TestListNeedsAVM(t *testing.T) {
	w := newWorld(t)
	w.add(t, route.Draft{Spec: route.Spec{Port: 80}})
	if all, err := w.List(t.Context(), access.Owner("acc_a"), "vm_a"); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := w.List(t.Context(), access.Owner("acc_b"), "vm_a"); !errs.HasCode(err, "vm_not_found") {
		t.Errorf("of another owner: %v", err)
	}
}
