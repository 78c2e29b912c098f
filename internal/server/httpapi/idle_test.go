package httpapi_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
)

// What a client sends back as it has read it changes nothing, however precise it is here.
func TestVMsOwnIdlePolicyAndExpirySentBack(t *testing.T) {
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond).Add(456 * time.Microsecond)
	past := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	idle := machine.IdlePolicy{Timeout: 1500 * time.Millisecond, Action: machine.ActionStop, CPUPercent: 3, NetworkBytes: 4}
	for name, c := range map[string]struct {
		idle   machine.IdlePolicy
		expiry machine.Expiry
	}{
		"neither":                 {},
		"idle":                    {idle: idle},
		"a TTL":                   {idle, machine.Expiry{TTL: 2 * time.Hour, At: at, Action: machine.ActionDelete}},
		"a time":                  {idle, machine.Expiry{At: at, Action: machine.ActionStop}},
		"a time that passes":      {idle, machine.Expiry{At: past, Action: machine.ActionStop}},
		"a TTL that has passed":   {idle, machine.Expiry{TTL: 2 * time.Hour, Action: machine.ActionSleep}},
		"an action without a use": {idle, machine.Expiry{Action: machine.ActionDelete}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.vms.idle, s.vms.expiry = c.idle, c.expiry
			whole := string(s.call(t, "GET", "/vms/"+knownVM, "").body)
			for _, body := range []string{whole, strings.Replace(whole, `"name":"web"`, `"name":"db"`, 1), `{"name":"db"}`} {
				wantStatus(t, s.call(t, "PATCH", "/vms/"+knownVM, body), 200)
				if got := s.vms.updated; got.Idle != c.idle || got.Expiry != c.expiry {
					t.Errorf("%s: %+v, %+v", body, got.Idle, got.Expiry)
				}
			}
			if strings.Contains(whole, `"ttl_seconds":0`) {
				t.Errorf("shown as %s", whole)
			}
		})
	}
}

func TestPatchExpiry(t *testing.T) {
	s := newServer(t)
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
	shown, other := api.Time{Time: at}.String(), api.Time{Time: at.Add(time.Hour)}.String()
	given := machine.Expiry{TTL: 2 * time.Hour, At: at, Action: machine.ActionDelete}
	none := machine.Expiry{}
	begun := func(ttl time.Duration, a machine.Action) machine.Expiry { return machine.Expiry{TTL: ttl, Action: a} }
	for _, c := range []struct {
		before machine.Expiry
		body   string
		want   machine.Expiry // At zero: from now, if there is a TTL
		field  string         // that is refused
	}{
		{given, `{"ttl_seconds":3600}`, begun(time.Hour, machine.ActionDelete), ""},
		{given, `{"ttl_seconds":7200}`, begun(2*time.Hour, machine.ActionDelete), ""},
		{given, fmt.Sprintf(`{"ttl_seconds":3600,"expires_at":%q}`, shown), begun(time.Hour, machine.ActionDelete), ""},
		{given, fmt.Sprintf(`{"ttl_seconds":7200,"expires_at":%q}`, other), machine.Expiry{At: at.Add(time.Hour), Action: machine.ActionDelete}, ""},
		{given, `{"ttl_seconds":7200,"expires_at":null}`, none, ""},
		{given, `{"ttl_seconds":3600,"expires_at":null}`, begun(time.Hour, machine.ActionDelete), ""},
		{given, `{"ttl_seconds":0}`, none, ""},
		{given, `{"ttl_seconds":null}`, none, ""},
		{given, `{"expires_at":null}`, none, ""},
		{given, `{"ttl_seconds":null,"expires_at":null,"expire_action":"delete"}`, none, ""},
		{given, `{"expire_action":"sleep"}`, machine.Expiry{TTL: 2 * time.Hour, At: at, Action: machine.ActionSleep}, ""},
		{given, fmt.Sprintf(`{"ttl_seconds":3600,"expires_at":%q}`, other), none, "expires_at"},
		{given, `{"expires_at":"2026-01-02T03:04:05Z"}`, none, "expires_at"},
		{given, `{"ttl_seconds":0,"expire_action":"sleep"}`, none, "expire_action"},
		{none, `{"expire_action":"delete"}`, none, "expire_action"},
		{none, `{"expire_action":"delete","ttl_seconds":60}`, begun(time.Minute, machine.ActionDelete), ""},
		{none, fmt.Sprintf(`{"expires_at":%q}`, shown), machine.Expiry{At: at, Action: machine.ActionStop}, ""},
		{begun(time.Hour, machine.ActionStop), `{"ttl_seconds":3600}`, begun(time.Hour, machine.ActionStop), ""},
	} {
		s.vms.expiry = c.before
		before := time.Now()
		reply := s.call(t, "PATCH", "/vms/"+knownVM, c.body)
		if c.field != "" {
			if p := reply.problem(t); p.Field != c.field || reply.StatusCode != 400 {
				t.Errorf("%s: %d, %+v", c.body, reply.StatusCode, p)
			}
			continue
		}
		wantStatus(t, reply, 200)
		got := s.vms.updated.Expiry
		if c.want.TTL > 0 && c.want.At.IsZero() && got.At.After(before.Add(c.want.TTL-time.Second)) && got.At.Before(time.Now().Add(c.want.TTL+time.Second)) {
			got.At = time.Time{}
		}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.body, got, c.want)
		}
	}
}

// An action that would never happen is refused, where it would have been dropped.
func TestAnExpiryNeedsATime(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/vms", "/templates"} {
		reply := s.call(t, "POST", path, `{"name":"x","expire_action":"delete"}`)
		if p := reply.problem(t); reply.StatusCode != 400 || p.Field != "expire_action" {
			t.Errorf("%s: %d, %+v", path, reply.StatusCode, p)
		}
		wantStatus(t, s.call(t, "POST", path, `{"name":"x","expire_action":"delete","ttl_seconds":60}`), 201)
	}
	wantStatus(t, s.call(t, "POST", "/vms", fmt.Sprintf(`{"expire_action":"delete","expires_at":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))), 201)
	if e := s.vms.request.Expiry; e == nil || e.Action != machine.ActionDelete || e.At.IsZero() {
		t.Errorf("asked for %+v", e)
	}
}

func TestImplicitRoutesAreTheOwnersChoice(t *testing.T) {
	s := newServer(t)
	for body, want := range map[string]*route.Implicit{`{}`: nil, `{"implicit_routes":true}`: new(route.ImplicitOn), `{"implicit_routes":false}`: new(route.ImplicitOff)} {
		wantStatus(t, s.call(t, "POST", "/vms", body), 201)
		if got := s.vms.request.ImplicitRoutes; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", body, got)
		}
	}
	for body, want := range map[string]route.Implicit{
		`{"implicit_routes":false}`: route.ImplicitOff, `{"implicit_routes":true}`: route.ImplicitOn, `{"implicit_routes":null}`: route.ServersChoice, `{"name":"db"}`: route.ServersChoice,
	} {
		reply := s.call(t, "PATCH", "/vms/"+knownVM, body)
		wantStatus(t, reply, 200)
		shown := decode[api.VM](t, reply).ImplicitRoutes
		if got := s.vms.updated.ImplicitRoutes; got != want || (shown != nil) != (want != route.ServersChoice) || shown != nil && *shown != (want == route.ImplicitOn) {
			t.Errorf("%s: %q, shown as %v", body, got, shown)
		}
	}
}

func TestPatchIdle(t *testing.T) {
	s := newServer(t)
	had := machine.IdlePolicy{Timeout: time.Minute, Action: machine.ActionStop, CPUPercent: 3, NetworkBytes: 4}
	for _, c := range []struct {
		before machine.IdlePolicy
		body   string
		want   machine.IdlePolicy
	}{
		// The service adds the action.
		{machine.IdlePolicy{}, `{"idle":{"timeout_seconds":600}}`, machine.IdlePolicy{Timeout: 10 * time.Minute, CPUPercent: 7, NetworkBytes: 4096}},
		{had, `{"idle":{"timeout_seconds":600}}`, machine.IdlePolicy{Timeout: 10 * time.Minute, Action: machine.ActionStop, CPUPercent: 3, NetworkBytes: 4}},
		{had, `{"idle":null}`, machine.IdlePolicy{}},
	} {
		s.vms.idle = c.before
		wantStatus(t, s.call(t, "PATCH", "/vms/"+knownVM, c.body), 200)
		if got := s.vms.updated.Idle; got != c.want {
			t.Errorf("%s: %+v, want %+v", c.body, got, c.want)
		}
	}
}
