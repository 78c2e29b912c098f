package httpapi_test

import (
	"io"
	"net"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/vm"
)

// TestClient lets the public client speak to the door.
func TestClient(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	made, err := c.CreateVM(ctx, api.CreateVM{Name: "web"}, client.CreateOptions{Wait: "ready", WaitTimeout: vm.MaxWait, IdempotencyKey: "k"})
	if err != nil || made.ID != knownVM || s.vms.request.Idempotency.Key != "k" {
		t.Fatalf("%+v, %v", made, err)
	}
	s.vms.all = []vm.VM{sampleVM("vm_1"), sampleVM("vm_2")}
	var ids []string
	for v, err := range c.ListVMs(ctx, client.ListOptions{Labels: map[string]string{"a": "b=c"}, PageSize: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	if len(ids) != 2 || s.vms.filter.Labels["a"] != "b=c" || s.vms.filter.Limit != 2 {
		t.Errorf("listed %v by %+v", ids, s.vms.filter)
	}
	if _, err := c.GetVM(ctx, "../keys"); !client.IsNotFound(err) || !client.HasCode(err, "vm_not_found") {
		t.Errorf("an odd id: %v", err)
	}
	if _, err := c.WaitVM(ctx, knownVM, "cloud-init", vm.MaxWait); err != nil || !s.vms.want.CloudInit {
		t.Errorf("waited for %+v, %v", s.vms.want, err)
	}
	if m, err := c.VMMetrics(ctx, knownVM); err != nil || m.VMID != knownVM || m.VCPUCount != 2 {
		t.Errorf("metrics %+v, %v", m, err)
	}
	s.health.status = "degraded"
	if h, err := c.Health(ctx); err != nil || h.Status != "degraded" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestClientConsole(t *testing.T) {
	s := newServer(t)
	guest, console := net.Pipe()
	s.vms.console = func(bool) (io.ReadWriteCloser, error) { return console, nil }
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	screen, err := c.VMConsole(t.Context(), knownVM, false)
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	go func() { _, _ = io.WriteString(guest, "bye\n"); _ = guest.Close() }()
	if got, err := io.ReadAll(screen); err != nil || string(got) != "bye\n" {
		t.Errorf("read %q, %v", got, err)
	}
}
