package httpapi_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestSnapshotOnTheWire(t *testing.T) {
	s := newServer(t)
	s.vms.unfit = errs.New(errs.Conflict, "snapshot_unusable", "it was taken by QEMU 7.2.9")
	got := string(s.call(t, "GET", "/snapshots/golden", "").body)
	want := `{"id":"snap_1","vm_id":"vm_known0000000","name":"golden","kind":"manual","parent_id":"snap_0","durable":true,"size_bytes":4096,` +
		`"checksums":{"devices":"sha256:d","memory":"sha256:m","disk":"sha256:k"},` +
		`"compatibility":{"vmm":"qemu","vmm_version":"7.2.9","acceleration":"kvm","cpu":"Some CPU","usable":false,"reason":"it was taken by QEMU 7.2.9"},` +
		`"vm_config":{"hostname":"web","image_id":"img_default","template_id":"tpl_1","vcpu_count":2,"mem_mib":1024,"disk_mib":2048,"boot_args":"quiet",` +
		`"enable_network":true,"guest_ip":"172.16.0.10","guest_mac":"02:FC:00:00:00:0A"},"created_at":"2026-03-06T11:00:00.123Z"}` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	s.vms.unfit = errors.New("open /var/lib/hatch/secret: no such file")
	if got := string(s.call(t, "GET", "/snapshots/golden", "").body); strings.Contains(got, "/var/lib") {
		t.Errorf("a path of the host's is shown: %s", got)
	}
	s.vms.unfit = nil
	if snap := decode[api.Snapshot](t, s.call(t, "GET", "/snapshots/snap_1", "")); !snap.Compatibility.Usable || snap.Compatibility.Reason != "" {
		t.Errorf("one that fits is shown as %+v", snap.Compatibility)
	}
}

func TestSnapshotOptions(t *testing.T) {
	s := newServer(t)
	target := "/vms/" + knownVM + "/snapshot"
	reply := s.call(t, "POST", target, `{"name":"n","stop":true,"automatic":true}`)
	wantStatus(t, reply, 201)
	if want := (vm.SnapshotRequest{Name: "n", Stop: true, Automatic: true}); s.vms.taken != want || reply.Header.Get("Location") != "/snapshots/snap_1" {
		t.Errorf("asked for %+v, answered %s", s.vms.taken, reply.Header.Get("Location"))
	}
	if s.call(t, "POST", target, ""); s.vms.taken != (vm.SnapshotRequest{}) {
		t.Errorf("without a body: asked for %+v", s.vms.taken)
	}
	if p := s.call(t, "POST", target, `{"name":"n","halt":true}`).problem(t); p.Status != 400 || p.Field != "halt" {
		t.Errorf("an unknown field: %+v", p)
	}
}

func TestSnapshotLists(t *testing.T) {
	s := newServer(t)
	for target, vmID := range map[string]string{"/snapshots": "", "/snapshots?vm_id=" + knownVM: knownVM, "/vms/" + knownVM + "/snapshots": knownVM} {
		list := decode[[]api.Snapshot](t, s.call(t, "GET", target, ""))
		if len(list) != 1 || s.snapshots.filter.VMID != vmID {
			t.Errorf("%s: %d, asked for those of %q", target, len(list), s.snapshots.filter.VMID)
		}
	}
	s.snapshots.none = true
	for _, target := range []string{"/snapshots", "/vms/" + knownVM + "/snapshots", "/snapshots?vm_id=gone"} {
		if got := string(s.call(t, "GET", target, "").body); got != "[]\n" {
			t.Errorf("%s: an empty list is %s", target, got)
		}
	}
}

func TestRestore(t *testing.T) {
	s := newServer(t)
	target := "/vms/" + knownVM + "/restore"
	wantStatus(t, s.call(t, "POST", target+"?wait=ready", `{"snapshot_id":"golden"}`), 200)
	if s.vms.from != "golden" || !s.vms.want.Ready {
		t.Errorf("restored %q, waited for %+v", s.vms.from, s.vms.want)
	}
	if wantStatus(t, s.call(t, "POST", target, ""), 200); s.vms.from != "" {
		t.Errorf("without a body: restored %q", s.vms.from)
	}
	s.vms.start = func(ctx context.Context) (vm.VM, error) {
		return vm.VM{}, errs.New(errs.Conflict, "no_snapshot", "there is none").WithHint("take one")
	}
	reply := s.call(t, "POST", target, "")
	wantStatus(t, reply, 409)
	if p := reply.problem(t); p.Code != "no_snapshot" || p.Hint != "take one" {
		t.Errorf("%+v", p)
	}
}

func TestFork(t *testing.T) {
	s := newServer(t)
	s.vms.failed = []error{
		errs.New(errs.Unavailable, "copy_not_confirmed", "it has not said so").WithHint("try again"),
		errors.New("open /dev/secret: no such file"),
	}
	reply := s.call(t, "POST", "/vms/"+knownVM+"/fork", `{"count":3,"name":"c","labels":{"a":"b"},"user_data":"","ssh_authorized_keys":["k"]}`)
	wantStatus(t, reply, 201)
	made := decode[api.Copies](t, reply)
	if len(made.VMs) != 1 || made.VMs[0].UserData == "" || len(made.Failed) != 2 {
		t.Fatalf("%+v", made)
	}
	if want := (api.Failure{Code: "copy_not_confirmed", Message: "it has not said so", Hint: "try again"}); made.Failed[0] != want {
		t.Errorf("failed: %+v", made.Failed[0])
	}
	if f := made.Failed[1]; f.Code != "internal" || strings.Contains(f.Message, "/dev") || !strings.Contains(s.log.String(), "/dev/secret") {
		t.Errorf("an internal failure is shown as %+v", f)
	}
	if r := s.vms.cloned; r.Count != 3 || r.Name != "c" || r.Labels["a"] != "b" || r.UserData == nil || *r.UserData != "" || !slices.Equal(r.SSHKeys, []string{"k"}) {
		t.Errorf("asked for %+v", r)
	}
	s.vms.failed = nil
	reply = s.call(t, "POST", "/vms/"+knownVM+"/fork", "")
	if r := s.vms.cloned; r.Count != 1 || r.UserData != nil || r.SSHKeys != nil || !strings.Contains(string(reply.body), `"failed":[]`) {
		t.Errorf("without a body: asked for %+v, answered %s", r, reply.body)
	}
	for body, field := range map[string]string{`{"count":0}`: "count", `{"count":65}`: "count", `{"mem_mib":64}`: "mem_mib"} {
		if p := s.call(t, "POST", "/vms/"+knownVM+"/fork", body).problem(t); p.Status != 400 || p.Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
}

func TestCreateFromSnapshot(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "POST", "/vms", `{"snapshot_id":"golden","name":"n"}`)
	wantStatus(t, reply, 201)
	if s.vms.from != "golden" || s.vms.cloned.Count != 1 || s.vms.cloned.Name != "n" || strings.Contains(string(reply.body), `"vms"`) {
		t.Errorf("asked for %+v of %q, answered %s", s.vms.cloned, s.vms.from, reply.body)
	}
	s.vms.failed = []error{errs.New(errs.Exhausted, "no_memory", "the host is full")}
	reply = s.call(t, "POST", "/vms?wait=ready", `{"snapshot_id":"golden","count":2}`)
	wantStatus(t, reply, 201)
	made := decode[api.CreatedVM](t, reply)
	if made.ID != knownVM || len(made.VMs) != 1 || len(made.Failed) != 1 || !s.vms.want.Ready || s.vms.cloned.Count != 2 {
		t.Errorf("answered %+v", made)
	}
}

// TestFieldsOfTheSnapshotAreRefused sends each field that is not allowed with snapshot_id.
func TestFieldsOfTheSnapshotAreRefused(t *testing.T) {
	s := newServer(t)
	for field, value := range map[string]string{
		"image_id": `"i"`, "template_id": `"t"`, "vcpu_count": "1", "mem_mib": "64", "disk_mib": "64", "boot_args": `""`,
		"enable_network": "true", "guest_ip": `"172.16.0.9"`, "guest_mac": `"02:FC:00:00:00:09"`, "vmm": `"qemu"`,
	} {
		reply := s.call(t, "POST", "/vms", `{"snapshot_id":"golden","`+field+`":`+value+`}`)
		wantStatus(t, reply, 400)
		if p := reply.problem(t); p.Field != field || p.Code != "invalid_"+field || !strings.Contains(p.Error, "comes from the snapshot") {
			t.Errorf("%s: %+v", field, p)
		}
	}
	reply := s.call(t, "POST", "/vms", `{"count":2}`)
	wantStatus(t, reply, 400)
	if p := reply.problem(t); p.Code != "invalid_count" || !strings.Contains(p.Error, "snapshot_id") {
		t.Errorf("count alone: %+v", p)
	}
	reply = s.call(t, "POST", "/vms", `{"snapshot_id":"golden","hostname":"db","count":2}`)
	wantStatus(t, reply, 400)
	if p := reply.problem(t); p.Code != "invalid_hostname" || p.Hint == "" {
		t.Errorf("a hostname for two: %+v", p)
	}
	if s.vms.askedFor("fork") || s.vms.askedFor("create") {
		t.Error("a VM was made")
	}
}

// TestClientSnapshots calls the routes of snapshots with the public client.
func TestClientSnapshots(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if snap, err := c.CreateSnapshot(ctx, knownVM, api.CreateSnapshot{Name: "golden"}); err != nil || snap.ID != "snap_1" || s.vms.taken.Name != "golden" {
		t.Errorf("%+v, %v", snap, err)
	}
	if list, err := c.ListSnapshots(ctx, knownVM); err != nil || len(list) != 1 || s.snapshots.filter.VMID != knownVM {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := c.VMSnapshots(ctx, knownVM); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := c.GetSnapshot(ctx, "silver"); !client.HasCode(err, "snapshot_not_found") {
		t.Errorf("one that is not there: %v", err)
	}
	if err := c.DeleteSnapshot(ctx, "golden"); err != nil {
		t.Error(err)
	}
	if v, err := c.RestoreVM(ctx, knownVM, ""); err != nil || v.ID != knownVM {
		t.Errorf("%+v, %v", v, err)
	}
	if made, err := c.ForkVM(ctx, knownVM, api.ForkVM{Name: "c"}); err != nil || len(made.VMs) != 1 || s.vms.cloned.Name != "c" {
		t.Errorf("%+v, %v", made, err)
	}
	if made, err := c.CreateVMs(ctx, api.CreateVM{SnapshotID: "golden"}, client.CreateOptions{}); err != nil || len(made.VMs) != 1 || s.vms.from != "golden" {
		t.Errorf("%+v, %v", made, err)
	}
}
