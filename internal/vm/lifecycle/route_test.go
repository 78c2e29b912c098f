package lifecycle_test

import (
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
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
		{vm.CreateRequest{Routes: of("a.example.org"), Rights: access.RightsOf(access.Write(access.Routes))}, false},
		{vm.CreateRequest{Routes: of("b.example.org"), Rights: access.AllRights}, true},
		{vm.CreateRequest{TemplateID: "tpl_own", Rights: access.AllRights}, false}, // a key with less may have written it
		{vm.CreateRequest{TemplateID: "tpl_other", Rights: access.AllRights}, false},
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

// A key that may only create VMs gets no more from a template than from its own request.
func TestWhatNewVMsNeedRightsFor(t *testing.T) {
	w := newWorld(t)
	routes := []route.Spec{{Subdomain: "web", Port: 80, Auth: route.Auth{Mode: route.Public}, Upstream: route.HTTP1}}
	ports := []machine.Port{{Guest: 80, Host: 8080}}
	w.templates = map[string]template.Template{
		"tpl_routes": {ID: "tpl_routes", OwnerID: owner, Routes: routes},
		"tpl_ports":  {ID: "tpl_ports", OwnerID: "acc_other", Overrides: machine.Overrides{Ports: ports}},
	}
	creator := access.RightsOf(access.Write(access.VMs))
	for name, req := range map[string]vm.CreateRequest{
		"routes":            {Routes: routes},
		"template's routes": {TemplateID: "tpl_routes"},
		"ports":             {Overrides: machine.Overrides{Ports: ports}},
		"template's ports":  {TemplateID: "tpl_ports"},
	} {
		req.Rights = creator
		if _, err := w.Create(t.Context(), owner, req); !errs.Is(err, errs.Forbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, req := range map[string]vm.CreateRequest{
		"no routes":  {TemplateID: "tpl_routes", Routes: []route.Spec{}, Rights: creator},
		"free port":  {TemplateID: "tpl_ports", Overrides: machine.Overrides{Ports: []machine.Port{{Guest: 80}}}, Rights: creator},
		"all rights": {TemplateID: "tpl_ports", Rights: access.AllRights},
	} {
		if _, err := w.Create(t.Context(), owner, req); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
