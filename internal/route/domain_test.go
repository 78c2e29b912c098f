package route_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

const domain = "www.example.org"

// domainOf makes a route with the domain, whose proof the DNS has.
func (w *world) domainOf(t *testing.T, by, vmID string) route.Route {
	t.Helper()
	r, err := w.Create(t.Context(), caller(by, access.RightsOf(access.Write(access.Routes))), vmID, route.Draft{Spec: route.Spec{Domain: domain, Port: 80}})
	if err != nil {
		t.Fatal(err)
	}
	w.dns["_hatch."+domain] = append(w.dns["_hatch."+domain], r.Proof)
	return r
}

func (w *world) leadsTo(t *testing.T) string {
	t.Helper()
	target, err := w.Resolve(t.Context(), domain)
	if err != nil && !errors.Is(err, route.ErrUnknown) {
		t.Fatal(err)
	}
	return target.VMID
}

// A domain may get another owner: its proof takes the domain, once that of the former is
// not there any more, and no earlier. What an admin has given stays.
func TestADomainGoesToWhoProvesIt(t *testing.T) {
	w, a, b := newWorld(t), access.Owner("acc_a"), access.Owner("acc_b")
	first := w.domainOf(t, "acc_a", "vm_a")
	if _, err := w.Verify(t.Context(), a, first.ID); err != nil {
		t.Fatal(err)
	}
	second := w.domainOf(t, "acc_b", "vm_b")
	if _, err := w.Verify(t.Context(), b, second.ID); !errs.HasCode(err, "domain_taken") || w.leadsTo(t) != "vm_a" {
		t.Errorf("both proofs are there: %v, it leads to %s", err, w.leadsTo(t))
	}
	w.dns["_hatch."+domain] = []string{second.Proof}
	if r, err := w.Verify(t.Context(), b, second.ID); err != nil || !r.Served() || w.leadsTo(t) != "vm_b" {
		t.Errorf("only the second is: %v, it leads to %s", err, w.leadsTo(t))
	}
	if _, err := w.Verify(t.Context(), a, first.ID); !errs.HasCode(err, "domain_unproven") {
		t.Errorf("the first owner: %v", err)
	}
	for i := range w.store.routes {
		if r := &w.store.routes[i]; r.ID == second.ID {
			r.VerifiedAt = &r.CreatedAt // by an admin
		}
	}
	w.dns["_hatch."+domain] = []string{first.Proof}
	if _, err := w.Verify(t.Context(), a, first.ID); !errs.HasCode(err, "domain_taken") {
		t.Errorf("against an admin's: %v", err)
	}
}

// Each day the proof is looked for. A DNS that fails says nothing, and one day without it
// does not end anything.
func TestDomainsAreProvedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Now = time.Now
		w.open(t)
		r := w.domainOf(t, "acc_a", "vm_a")
		<-time.After(time.Minute)
		if _, err := w.Verify(t.Context(), access.Owner("acc_a"), r.ID); err != nil {
			t.Fatal(err)
		}
		proof := w.dns["_hatch."+domain]
		for day, c := range []struct {
			records []string
			down    error
			missed  int
			served  bool
		}{
			{proof, nil, 0, true},
			{nil, nil, 1, true},
			{proof, errors.New("timeout"), 1, true},
			{nil, nil, 2, true},
			{proof, nil, 0, true},
			{nil, nil, 1, true},
			{[]string{"v=spf1"}, nil, 2, true},
			{nil, nil, 3, false},
			{proof, nil, 3, false},
		} {
			w.dns["_hatch."+domain], w.down = c.records, c.down
			<-time.After(25 * time.Hour)
			ctx, end := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { w.Run(ctx) })
			<-time.After(3 * time.Hour) // it looks more than once, and checks once
			end()
			running.Wait()
			got, err := w.Get(t.Context(), access.Owner("acc_a"), r.ID)
			if err != nil || got.Missed != c.missed || got.Served() != c.served || (w.leadsTo(t) == "vm_a") != c.served {
				t.Errorf("day %d: %+v, %v, want %+v", day, got, err, c)
			}
		}
		w.down = nil
		if got, err := w.Verify(t.Context(), access.Owner("acc_a"), r.ID); err != nil || got.Missed != 0 || w.leadsTo(t) != "vm_a" {
			t.Errorf("proved anew: %+v, %v", got, err)
		}
	})
}
