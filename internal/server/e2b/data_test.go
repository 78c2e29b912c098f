package e2b

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestRequestsAreLedToSandboxes(t *testing.T) {
	w := newWorld()
	made := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", `{"templateID":"web","envVars":{"A":"b"}}`)
	id := made.SandboxID
	must[any](t, w, 204, "GET", "49983-"+id+".box.example/health", "")
	must[any](t, w, 204, "POST", "127.0.0.1/process.Process/List", "{}", sandboxHeader+": "+id)
	must[any](t, w, 200, "GET", "3000-"+id+".box.example/", "")
	if len(w.agents) != 2 || w.agents[0].VMID != vmIDOf(id) || w.agents[0].Owner != owner || w.agents[0].Token != made.Token || w.agents[0].Env["A"] != "b" || len(w.ports) != 1 || w.ports[0] != 3000 {
		t.Errorf("led to %+v, %v", w.agents, w.ports)
	}
	must[problem](t, w, 400, "GET", "127.0.0.1/files?signature=v1_x", "")
}

// TestUnreachable compares the texts that clients look for.
func TestUnreachable(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/pause", "")
	plain := w.vms.put(vm.VM{ID: "vm_plain0000000", OwnerID: owner, State: vm.Running})
	for _, gone := range []string{id, "i999999999999", "x", sandboxID(plain.ID)} {
		got := must[unreachable](t, w, 502, "GET", "49983-"+gone+".box.example/health", "")
		if got != (unreachable{gone, "The sandbox was not found", 0, 502}) {
			t.Errorf("%s: %+v", gone, got)
		}
	}
	if len(w.agents) != 0 {
		t.Error("an agent was reached")
	}
	r := httptest.NewRequest("GET", "http://3000-"+id+".box.example/", nil)
	for code, want := range map[string]string{
		"port_closed": `"message":"The sandbox is running but port is not open","port":3000,"code":502`,
		"not_running": `"message":"The sandbox was not found","code":502`,
		"bad_answer":  `"code":502`,
	} {
		rec := httptest.NewRecorder()
		w.cfg.Ports = func(rw http.ResponseWriter, r *http.Request, _ Sandbox, _ int) { w.RefusePort(rw, r, 502, code) }
		v := w.vms.all[vmIDOf(id)]
		v.State, v.Sleep = vm.Running, nil
		w.vms.put(v)
		w.ServeHTTP(rec, r)
		if rec.Code != 502 || !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%s: %d %s", code, rec.Code, rec.Body)
		}
	}
}

func TestTrafficResumes(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", `{"templateID":"web","timeout":60,"autoPause":true,"autoResume":{"enabled":true}}`).SandboxID
	must[any](t, w, 204, "POST", "/sandboxes/"+id+"/pause", "")
	must[any](t, w, 200, "GET", "3000-"+id+".box.example/", "")
	v := w.vms.all[vmIDOf(id)]
	if left := time.Until(v.Expiry.At); v.State != vm.Running || left < 50*time.Second || left > time.Minute {
		t.Errorf("it is %s, and %v are left", v.State, left)
	}
}

func TestGuardedPorts(t *testing.T) {
	w := newWorld()
	made := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", `{"templateID":"web","network":{"allowPublicTraffic":false}}`)
	at := "3000-" + made.SandboxID + ".box.example/"
	for _, wrong := range []string{"", "x", made.Token} {
		if got := must[unreachable](t, w, 403, "GET", at, "", trafficHeader+": "+wrong); got.Code != 403 {
			t.Errorf("%+v", got)
		}
	}
	must[any](t, w, 200, "GET", at, "", trafficHeader+": "+*made.TrafficToken)
	must[any](t, w, 204, "GET", "49983-"+made.SandboxID+".box.example/health", "") // the agent has a token of its own
}

func TestAPanicIsAnswered(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	w.cfg.Agent = func(http.ResponseWriter, *http.Request, Sandbox) { panic("x") }
	if p := must[problem](t, w, 500, "GET", "49983-"+id+".box.example/health", ""); p.Code != 500 || strings.Contains(p.Message, "x\"") {
		t.Errorf("%+v", p)
	}
}

func TestAuditAndRates(t *testing.T) {
	w := newWorld()
	id := must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest).SandboxID
	must[any](t, w, 204, "GET", "49983-"+id+".box.example/health", "")
	must[any](t, w, 204, "POST", "49983-"+id+".box.example/process.Process/Start", "")
	must[problem](t, w, 404, "DELETE", "/sandboxes/i999999999999", "")
	must[detail](t, w, 200, "GET", "/sandboxes/"+id, "")
	var got []string
	for _, r := range w.audit {
		got = append(got, r.Operation+" "+r.Object+" "+r.KeyID+" "+string(r.Outcome)+" "+r.Code)
	}
	want := []string{
		"POST /v2/sandboxes vm_000000000001 key_a ok ", "POST /process.Process/Start vm_000000000001  ok ",
		"DELETE /sandboxes/{id} vm_999999999999 key_a refused sandbox_not_found",
	}
	if !slices.Equal(got, want) {
		t.Errorf("recorded %q", got)
	}
	w.rates = admission.NewRates(map[admission.Class]admission.Rate{admission.Creates: {PerSecond: 0.001, Burst: 1}})
	must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest)
	must[problem](t, w, 429, "POST", "/v2/sandboxes", smallest)
	must[detail](t, w, 200, "GET", "/sandboxes/"+id, "")
}
