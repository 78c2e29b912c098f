package lifecycle_test

import (
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
)

// A domain that comes with a VM is served by the same rules as one that is added to it: at
// once if an admin has chosen it, else once it is proved.
func TestDomainsOfNewVMs(t *testing.T) {
	w := newWorld(t)
	of := func(domain string) []route.Spec {
		return []route.Spec{{Domain: domain, Port: 80, Auth: route.Auth{Mode: route.Public}, Upstream: route.HTTP1}}
	}
	w.templates = map[string]template.Template{
		"tpl_own":   {ID: "tpl_own", OwnerID: owner, Routes: of("own.example.org")},
		"tpl_other": {ID: "tpl_other", OwnerID: "acc_other", Routes: of("other.example.org")},
	}
	for _, c := range []struct {
		req    vm.CreateRequest
		served bool
	}{
		{vm.CreateRequest{Routes: of("a.example.org")}, false},
		{vm.CreateRequest{Routes: of("b.example.org"), OwnsDomains: true}, true},
		{vm.CreateRequest{TemplateID: "tpl_own", OwnsDomains: true}, true},
		{vm.CreateRequest{TemplateID: "tpl_other", OwnsDomains: true}, false}, // chosen by another
	} {
		v, err := w.Create(t.Context(), owner, c.req)
		if err != nil {
			t.Fatal(err)
		}
		routes, err := w.store.Routes(t.Context(), access.Owner(owner), v.ID)
		if err != nil || len(routes) != 1 || routes[0].Served() != c.served || routes[0].Proof == "" || routes[0].Granted() != c.served {
			t.Errorf("%+v: %+v, %v", c, routes, err)
		}
	}
}
