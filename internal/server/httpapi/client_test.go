package httpapi_test

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/vm"
)

// TestClient calls the API with the public client.
func TestClient(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	made, err := c.CreateVM(ctx, api.CreateVM{Name: "web"}, client.CreateOptions{Wait: "ready", WaitTimeout: vm.MaxWait, IdempotencyKey: "k"})
	if err != nil || made.ID != knownVM || s.requests.keys["k"].hash == "" {
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

// TestClientFiles accesses a guest's files with the public client.
func TestClientFiles(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	const odd = "/tmp/\xff b"
	mode := uint32(0o600)
	if f, err := c.WriteFile(ctx, knownVM, odd, strings.NewReader("0123456789"), client.WriteOptions{Mode: &mode}); err != nil || client.PathOf(f) != odd {
		t.Fatalf("%+v, %v", f, err)
	}
	for part, want := range map[client.FilePart]string{{}: "0123456789", {Offset: 8}: "89", {Offset: -4, Length: 2}: "67", {Length: 1}: "0"} {
		content, err := c.ReadFile(ctx, knownVM, odd, part)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(content)
		if err != nil || string(got) != want || content.Size != int64(len(want)) || content.Mode != mode || content.ModifiedAt.IsZero() {
			t.Errorf("%+v: %q, %v, %+v", part, got, err, content)
		}
		_ = content.Close()
	}
	changes, err := c.WatchFiles(ctx, knownVM, "/tmp", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenameFile(ctx, knownVM, odd, "/tmp/plain"); err != nil {
		t.Fatal(err)
	}
	for change, err := range changes {
		if err != nil || change.Path != "/tmp/plain" {
			t.Errorf("saw %+v, %v", change, err)
		}
		break
	}
	archive, err := c.ReadTree(ctx, knownVM, "/tmp")
	if err != nil {
		t.Fatal(err)
	}
	if f, err := c.WriteTree(ctx, knownVM, "/copy", "", archive); err != nil || f.Kind != api.FileDirectory {
		t.Errorf("%+v, %v", f, err)
	}
	_ = archive.Close()
	if _, err := c.MakeDirectory(ctx, knownVM, "/copy/d", client.DirectoryOptions{}); err != nil {
		t.Error(err)
	}
	var names []string
	for f, err := range c.ListFiles(ctx, knownVM, "/copy") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{"d", "tmp"}) {
		t.Errorf("listed %q", names)
	}
	if err := c.RemoveFile(ctx, knownVM, "/copy", true); err != nil {
		t.Error(err)
	}
	if _, err := c.StatFile(ctx, knownVM, "/copy/tmp/plain"); !client.HasCode(err, "file_not_found") {
		t.Errorf("after removal: %v", err)
	}
	if _, err := c.WriteFile(ctx, knownVM, "/none/f", strings.NewReader(strings.Repeat("x", 8<<20)), client.WriteOptions{}); !client.IsNotFound(err) {
		t.Errorf("a refused upload: %v", err)
	}
}
