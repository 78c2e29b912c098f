package e2b

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const smallest = `{"templateID":"base","metadata":{},"envVars":{}}`

func TestCreateGetKill(t *testing.T) {
	w := newWorld()
	made := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":120,"autoPause":true,"autoPauseMemory":true,"autoResume":{"enabled":true},`+
		`"allow_internet_access":true,"network":{"allowPublicTraffic":false},"metadata":{"a b":"x=1&y","k":"v"},"envVars":{"FOO":"bar"}}`)
	if made.SandboxID != "i000000000001" || made.TemplateID != "base" || made.AgentVersion != agentVersion || len(made.Token) < 32 || made.TrafficToken == nil || made.Domain != "box.example:3443" {
		t.Errorf("made %+v", made)
	}
	v := w.vms.all["vm_000000000001"]
	if v.Labels[label] != "true" || v.Sandbox.Env["FOO"] != "bar" || v.Expiry.TTL != 2*time.Minute || v.Expiry.Action != machine.ActionSleep || v.Idle.Active() {
		t.Errorf("the VM is %+v", v.Spec)
	}
	got := must[detail](t, w, 200, "GET", "/sandboxes/"+made.SandboxID+"-hatch", "")
	if got.State != running || got.Token != made.Token || got.Metadata["a b"] != "x=1&y" || got.Lifecycle != (lifecycle{true, "pause"}) || !got.EndAt.Equal(v.Expiry.At) {
		t.Errorf("got %+v", got)
	}
	must[any](t, w, 204, "DELETE", "/sandboxes/"+made.SandboxID, "")
	if p := must[problem](t, w, 404, "DELETE", "/sandboxes/"+made.SandboxID, ""); p.Code != 404 || p.Message == "" {
		t.Errorf("the second kill: %+v", p)
	}
}

func TestUsualTimesAndTokens(t *testing.T) {
	w := newWorld()
	first := must[sandbox](t, w, 201, "POST", "/sandboxes", `{"templateID":"web"}`)
	second := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest)
	if first.Token != "" || second.Token == "" || first.TemplateID != "tpl_1" || first.Alias != "web" {
		t.Errorf("%+v, %+v", first, second)
	}
	if one, two := w.vms.all["vm_000000000001"].Expiry.TTL, w.vms.all["vm_000000000002"].Expiry.TTL; one != firstTimeout || two != secondTimeout {
		t.Errorf("times %v and %v", one, two)
	}
	if got := must[detail](t, w, 200, "GET", "/sandboxes/"+second.SandboxID, "", keyHeader+": "+reader); got.Token != "" {
		t.Error("a key that may only read gets a token to run commands with")
	}
}

// TestRefusals has what clients rely on and the server does not do, and what is wrong.
func TestRefusals(t *testing.T) {
	w := newWorld()
	must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest)
	for _, c := range []struct {
		status             int
		method, path, body string
		says               string
	}{
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","allow_internet_access":false}`, "allow_internet_access"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","network":{"denyOut":["0.0.0.0/0"]}}`, "network.denyOut"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}`, "volumeMounts"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false}`, "autoPauseMemory"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","mcp":{"x":{}}}`, "mcp"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","iam":{"tokens":{"a":{}}}}`, "iam"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","autoResume":{"enabled":true}}`, "autoResume"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":0}`, "timeout"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":99999999}`, "1 to 31536000"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":"x"}`, "timeout"},
		{400, "POST", "/v2/sandboxes", `{"templateID":"base","envVars":{"A=B":"x"}}`, "envVars"},
		{400, "POST", "/v2/sandboxes", `{`, "JSON"},
		{404, "POST", "/v2/sandboxes", `{"templateID":"none"}`, "template 'none' not found"},
		{404, "POST", "/v2/sandboxes", `{"templateID":"web:v2"}`, "not found"},
		{413, "POST", "/v2/sandboxes", `{"x":"` + strings.Repeat("x", maxBody) + `"}`, "too large"},
		{404, "GET", "/sandboxes/nothing", "", "not found"},
		{404, "GET", "/sandboxes/x/y/z", "", "no route"},
		{405, "PATCH", "/sandboxes", "", "PATCH"},
		{400, "GET", "/v2/sandboxes?limit=0", "", "limit"},
		{400, "GET", "/v2/sandboxes?state=dead", "", "state"},
		{400, "GET", "/v2/sandboxes?nextToken=x", "", "nextToken"},
		{400, "GET", "/v2/sandboxes?order=up", "", "order"},
		{400, "POST", "/sandboxes/i000000000001/timeout", "", "timeout"},
		{400, "POST", "/sandboxes/i000000000001/connect", "{}", "timeout"},
		{400, "POST", "/sandboxes/i000000000001/pause", `{"memory":false}`, "memory"},
		{409, "POST", "/sandboxes/i000000000001/resume", `{}`, "already running"},
		{501, "PUT", "/sandboxes/i000000000001/network", `{}`, "update_network"},
		{501, "POST", "/v3/templates", `{"name":"x"}`, "builds of templates"},
		{501, "POST", "/volumes", `{}`, "volumes"},
		{501, "GET", "/secrets", ``, "secrets"},
		{501, "DELETE", "/templates/web", ``, "deletion of templates"},
	} {
		p := must[problem](t, w, c.status, c.method, c.path, c.body)
		if p.Code != c.status || !strings.Contains(p.Message, c.says) {
			t.Errorf("%s %s %s: %+v", c.method, c.path, errs.Brief(c.body), p)
		}
	}
	if len(w.vms.all) != 1 {
		t.Errorf("%d VMs are left", len(w.vms.all))
	}
}

func TestKeys(t *testing.T) {
	w := newWorld()
	for want, header := range map[int]string{401: "", 403: reader} {
		if p := must[problem](t, w, want, "POST", "/v2/sandboxes", smallest, keyHeader+": "+header); p.Code != want {
			t.Errorf("%q: %+v", header, p)
		}
	}
	must[problem](t, w, 401, "GET", "/no/such/route", "", keyHeader+": wrong")
	status, _, h := w.send("OPTIONS", "/v2/sandboxes", "", keyHeader+": ")
	if status != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("preflight: %d %v", status, h)
	}
}

func TestFailuresOfCreate(t *testing.T) {
	for code, c := range map[int]struct {
		method string
		err    error
	}{
		503: {"Create", errs.New(errs.Exhausted, "memory_exhausted", "no memory")},
		429: {"Create", errs.New(errs.TooMany, "quota", "too many")},
		500: {"Wait", vm.WaitTimeout(vm.VM{})},
	} {
		w := newWorld()
		w.vms.fails[c.method] = c.err
		status, text, h := w.send("POST", "/v2/sandboxes", smallest)
		if status != code || !strings.Contains(text, `"code":`+strconv.Itoa(code)) || len(w.vms.all) != 0 {
			t.Errorf("%v: %d %s, %d VMs are left", c.err, status, text, len(w.vms.all))
		}
		if retry := h.Get("Retry-After"); (retry == "") != (code == 500) || (h.Get("Should-Retry") == "false") != (code == 500) {
			t.Errorf("%d: headers %v", code, h)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	w := newWorld()
	first := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest, "Idempotency-Key: one")
	again := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest, "Idempotency-Key: one")
	if first.SandboxID != again.SandboxID || len(w.vms.all) != 1 {
		t.Errorf("%s and %s", first.SandboxID, again.SandboxID)
	}
	must[problem](t, w, 422, "POST", "/v2/sandboxes", `{"templateID":"web"}`, "Idempotency-Key: one")
}

func TestTimeStandsStillWhilePaused(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	end := func() time.Time { return w.vms.all[vmIDOf(id)].Expiry.At }
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":1000}`)
	long := end()
	if left := time.Until(long); left < 990*time.Second || left > 1000*time.Second {
		t.Errorf("%v are left", left)
	}
	must[sandbox](t, w, 200, "POST", "/v2/sandboxes/"+id+"/connect", `{"timeout":10}`)
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/refreshes", `{"duration":10}`)
	if !end().Equal(long) {
		t.Error("connect or refresh has shortened the time")
	}
	w.vms.fails["Sleep"] = errs.New(errs.Unavailable, "x", "cannot")
	must[problem](t, w, 503, "POST", "/sandboxes/"+id+"/pause", "")
	if !end().Equal(long) {
		t.Error("a pause that failed has changed the time")
	}
	delete(w.vms.fails, "Sleep")
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/pause", "")
	must[problem](t, w, 409, "POST", "/sandboxes/"+id+"/pause", `{"memory":true}`)
	must[problem](t, w, 404, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":10}`)
	if got := must[detail](t, w, 200, "GET", "/sandboxes/"+id, ""); got.State != paused || !end().IsZero() {
		t.Errorf("paused: %+v, ends %v", got, end())
	}
	must[sandbox](t, w, 201, "POST", "/v2/sandboxes/"+id+"/connect", `{}`)
	if left := time.Until(end()); left < secondTimeout-10*time.Second || left > secondTimeout {
		t.Errorf("after a connect %v are left", left)
	}
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/pause", "{}")
	must[sandbox](t, w, 201, "POST", "/sandboxes/"+id+"/resume", `{"timeout":20,"autoPause":true}`)
	if v := w.vms.all[vmIDOf(id)]; v.Expiry.Action != machine.ActionSleep {
		t.Errorf("resumed: %+v", v.Expiry)
	}
}

// TestTimeFollowsOtherRoads puts a sandbox to sleep and wakes it as Hatch's own commands
// do.
func TestTimeFollowsOtherRoads(t *testing.T) {
	w := newWorld()
	id := vmIDOf(must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID)
	seen := make(chan vm.VM, 16)
	w.vms.told = func(v vm.VM) { w.Changed(v); seen <- v }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	until := func(ok func(vm.VM) bool) {
		t.Helper()
		for deadline := time.After(5 * time.Second); ; {
			select {
			case v := <-seen:
				if ok(v) {
					return
				}
			case <-deadline:
				t.Fatal("the time did not follow")
			}
		}
	}
	if _, err := w.vms.Sleep(ctx, access.Everyone, id); err != nil {
		t.Fatal(err)
	}
	until(func(v vm.VM) bool { return v.State == vm.Snapshotted && v.Expiry.At.IsZero() })
	if _, err := w.vms.Wake(ctx, access.Everyone, id); err != nil {
		t.Fatal(err)
	}
	until(func(v vm.VM) bool { return v.State == vm.Running && !v.Expiry.At.IsZero() })
}

func TestForkAndSnapshots(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	all := must[[]forked](t, w, 201, "POST", "/sandboxes/"+id+"/fork", `{"count":3,"timeout":60}`)
	if len(all) != 3 || all[0].Sandbox == nil || all[0].Sandbox.SandboxID == id || all[2].Error == nil || all[2].Error.Code != 503 {
		text, _ := json.Marshal(all)
		t.Errorf("forks %s", text)
	}
	must[problem](t, w, 400, "POST", "/sandboxes/"+id+"/fork", `{"count":21}`)
	snap := must[shownSnapshot](t, w, 201, "POST", "/sandboxes/"+id+"/snapshots", `{}`)
	if snap.ID != "snap_1" || snap.Names == nil {
		t.Errorf("%+v", snap)
	}
	if from := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", `{"templateID":"snap_1:default"}`); from.TemplateID != "snap_1" {
		t.Errorf("%+v", from)
	}
	must[[]shownSnapshot](t, w, 200, "GET", "/snapshots?sandboxID="+id, "")
	must[any](t, w, 204, "DELETE", "/templates/snap_1%3Adefault", "")
	must[problem](t, w, 404, "DELETE", "/templates/ns%2Fnone", "")
}

func TestTemplates(t *testing.T) {
	w := newWorld()
	if all := must[[]shownTemplate](t, w, 200, "GET", "/templates", ""); len(all) != 2 || all[0].BuildStatus != ready || len(all[0].BuildID) != 36 {
		t.Errorf("%+v", all)
	}
	if one := must[shownTemplate](t, w, 200, "GET", "/templates/ada%2Fweb", ""); len(one.Builds) != 1 || one.Builds[0].ID != one.BuildID {
		t.Errorf("%+v", one)
	}
	must[map[string]any](t, w, 200, "GET", "/templates/aliases/base", "")
	must[problem](t, w, 404, "GET", "/templates/aliases/none", "")
}

func TestMetricsAndLogs(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	if all := must[[]metric](t, w, 200, "GET", "/sandboxes/"+id+"/metrics", ""); len(all) != 1 || all[0].CPUs != 2 {
		t.Errorf("%+v", all)
	}
	for _, query := range []string{"?end=1000", "?start=99999999999"} {
		if all := must[[]metric](t, w, 200, "GET", "/sandboxes/"+id+"/metrics"+query, ""); all == nil || len(all) != 0 {
			t.Errorf("%s: %+v", query, all)
		}
	}
	many := must[struct{ Sandboxes map[string]metric }](t, w, 200, "GET", "/sandboxes/metrics?sandbox_ids="+id+",inone", "")
	if len(many.Sandboxes) != 1 {
		t.Errorf("%+v", many)
	}
	first := must[struct {
		Logs       []line
		LogEntries []entry
	}](t, w, 200, "GET", "/sandboxes/"+id+"/logs?start=0", "")
	if len(first.Logs) != 2 || first.LogEntries[1].Message != "two" || !strings.Contains(first.Logs[0].Line, `"logger":"console"`) {
		t.Errorf("%+v", first)
	}
	second := must[struct{ Logs []entry }](t, w, 200, "GET", "/v2/sandboxes/"+id+"/logs?direction=backward&search=o&limit=10", "")
	if len(second.Logs) != 2 || second.Logs[0].Message != "two" {
		t.Errorf("%+v", second)
	}
}
