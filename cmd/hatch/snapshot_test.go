package main

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// snapshotRoutes serves two snapshots, one of them of a VM that is gone, and
// two copies of any VM.
func (f *fakeServer) snapshotRoutes(mux *http.ServeMux) {
	f.snapshots = []api.Snapshot{
		{
			ID: "snap_a00000000001", VMID: "vm_web000000001", Name: "ready", Kind: api.SnapshotManual, Durable: true, SizeBytes: 300 << 20,
			Checksums:     api.SnapshotChecksums{Devices: "sha256:aa", Memory: "sha256:bb", Disk: "sha256:cc"},
			Compatibility: api.SnapshotCompatibility{VMM: "qemu", VMMVersion: "7.2.9", Acceleration: "kvm", CPU: "Some CPU", Usable: true},
			VMConfig:      api.SnapshotVMConfig{Hostname: "web", ImageID: "img_default", VCPUCount: 2, MemMiB: 1024, DiskMiB: 4096, EnableNetwork: true, GuestIP: "172.16.0.10", GuestMAC: "02:FC:00:00:00:0A"},
			CreatedAt:     api.Time{Time: testNow.Add(-5 * time.Minute)},
		},
		{
			ID: "snap_b00000000002", VMID: "vm_gone00000004", Kind: api.SnapshotAutomatic, ParentID: "snap_a00000000001", Durable: true, SizeBytes: 1 << 30,
			Compatibility: api.SnapshotCompatibility{VMM: "qemu", VMMVersion: "7.2.8", Acceleration: "tcg", CPU: "Another", Reason: "it was taken\x1b[31m by QEMU 7.2.8"},
			VMConfig:      api.SnapshotVMConfig{Hostname: "gone", ImageID: "img_minimal", VCPUCount: 1, MemMiB: 512, DiskMiB: 100},
			CreatedAt:     api.Time{Time: testNow.Add(-72 * time.Hour)},
		},
	}
	f.copies = api.Copies{VMs: []api.VM{{ID: "vm_copy00000011", Name: "c-1"}, {ID: "vm_copy00000012", Name: "c-2"}}, Failed: []api.Failure{}}
	mux.HandleFunc("GET /snapshots", func(w http.ResponseWriter, r *http.Request) {
		of := r.URL.Query().Get("vm_id")
		found := slices.DeleteFunc(slices.Clone(f.snapshots), func(s api.Snapshot) bool { return of != "" && s.VMID != of })
		reply(w, 200, found)
	})
	mux.HandleFunc("GET /snapshots/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.snapshots[0]) })
	mux.HandleFunc("DELETE /snapshots/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("POST /vms/{id}/snapshot", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, f.snapshots[0]) })
	mux.HandleFunc("POST /vms/{id}/restore", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) { reply(w, 200, v) }))
	mux.HandleFunc("POST /vms/{id}/fork", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, f.copies) })
}

func TestSnapshots(t *testing.T) {
	f := newFake(t)
	for name, args := range map[string]string{
		"snapshot-ls.txt":      "snapshot ls",
		"snapshot-ls-wide.txt": "snapshot ls -o wide",
		"snapshot-show.json":   "snapshot show ready",
		"snapshot-show.txt":    "snapshot show ready -o table",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
	f.snapshots = nil
	s := newSession(t, f)
	if s.hatch("snapshot", "ls", "-o", "json"); s.stdout.String() != "[]\n" {
		t.Errorf("an empty list is %q", &s.stdout)
	}
}

func TestSnapshotVerbs(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	for _, tc := range []struct{ args, call, sent, out string }{
		{"snapshot create web", "POST /vms/vm_web000000001/snapshot", "{}", "snap_a00000000001\n"},
		{"snapshot create web --name n --stop --automatic", "POST /vms/vm_web000000001/snapshot", `{"name":"n","stop":true,"automatic":true}`, "snap_a00000000001\n"},
		{"snapshot ls -q web", "GET /snapshots?vm_id=vm_web000000001", "", "snap_a00000000001\n"},
		{"snapshot ls -q vm_gone00000004", "GET /snapshots?vm_id=vm_gone00000004", "", "snap_b00000000002\n"},
		{"snapshot rm ready snap_b", "DELETE /snapshots/snap_b00000000002", "", "ready\nsnap_b\n"},
		{"restore web", "POST /vms/vm_web000000001/restore", "{}", "web\n"},
		{"restore web ready", "POST /vms/vm_web000000001/restore", `{"snapshot_id":"snap_a00000000001"}`, "web\n"},
		{"fork web", "POST /vms/vm_web000000001/fork", "{}", "vm_copy00000011\nvm_copy00000012\n"},
		{"fork web -n 2 --name c --label a=b", "POST /vms/vm_web000000001/fork", `{"count":2,"name":"c","labels":{"a":"b"}}`, "vm_copy00000011\nvm_copy00000012\n"},
		{"create --snapshot ready --name new", "POST /vms?wait=running", `{"name":"new","snapshot_id":"snap_a00000000001"}`, "vm_new000000009\n"},
		{"create --snapshot ready --count 2 --name c", "POST /vms", `{"name":"c","snapshot_id":"snap_a00000000001","count":2}`, "vm_copy00000011\nvm_copy00000012\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			f.bodies, f.calls = []string{""}, nil
			if code := s.hatch(strings.Fields(tc.args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			if !f.called(tc.call) || f.lastBody(t) != tc.sent {
				t.Errorf("calls: %q, sent %s", f.calls, f.lastBody(t))
			}
			if s.stdout.String() != tc.out {
				t.Errorf("printed %q", &s.stdout)
			}
		})
	}
}

func TestSnapshotFaults(t *testing.T) {
	f := newFake(t)
	f.answer["POST /vms/vm_web000000001/snapshot"] = api.Problem{Status: 409, Error: "VM vm_web000000001 may have 10 snapshots, and those it has make no room for another", Code: "snapshot_limit", Hint: "delete one"}
	s := newSession(t, f)
	for args, want := range map[string]string{
		"snapshot create web":      "hatch: cannot take a snapshot of web: VM vm_web000000001 may have 10 snapshots, and those it has make no room for another\nhint: delete one\n",
		"snapshot create":          "hatch: hatch snapshot create takes one VM; 0 were given\n",
		"snapshot show none":       "hatch: cannot inspect none: there is no snapshot \"none\"\nhint: hatch snapshot ls\n",
		"snapshot ls web db":       "hatch: hatch snapshot ls takes one VM at most; 2 were given\n",
		"snapshot ls none":         "hatch: cannot list snapshots: there is no VM \"none\"\nhint: hatch ls\n",
		"restore":                  "hatch: hatch restore takes a VM and a snapshot, or a VM; 0 were given\n",
		"restore web none":         "hatch: cannot restore web: there is no snapshot \"none\"\nhint: hatch snapshot ls\n",
		"fork none":                "hatch: cannot fork none: there is no VM \"none\"\n",
		"create --count 2":         "hatch: --count takes 1 or more, and needs --snapshot\n",
		"create --snapshot none":   "hatch: cannot create the VM: there is no snapshot \"none\"\n",
		"fork web --label nothing": "hatch: cannot fork web: --label takes KEY=VALUE, not \"nothing\"\n",
	} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code == 0 || !strings.HasPrefix(s.stderr.String(), want) {
				t.Errorf("%s: %d %s", args, code, &s.stderr)
			}
		})
	}
}

// TestSomeCopiesFail lets one of two not be made.
func TestSomeCopiesFail(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	f.copies = api.Copies{VMs: f.copies.VMs[:1], Failed: []api.Failure{{Code: "copy_not_confirmed", Message: "it has not\x1b[31m said so", Hint: "try again"}}}
	for _, args := range []string{"fork web -n 2", "create --snapshot ready --count 2"} {
		t.Run(args, func(t *testing.T) {
			code := s.hatch(strings.Fields(args)...)
			if code != exitOwn || s.stdout.String() != "vm_copy00000011\n" {
				t.Errorf("%s: exit code %d, printed %q", args, code, &s.stdout)
			}
			if want := "hatch: cannot make one of the VMs: it has not said so\nhint: try again\n"; s.stderr.String() != want {
				t.Errorf("%s: said %q", args, &s.stderr)
			}
		})
	}
}

func TestCopiesAreWaitedFor(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	f.copies.VMs = f.vms[:2]
	if code := s.hatch("create", "--snapshot", "ready", "--count", "2", "--wait", "ready"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	for _, v := range f.vms[:2] {
		if !f.called("GET /vms/" + v.ID + "/wait?for=ready&timeout=5m0s") {
			t.Errorf("calls: %q", f.calls)
		}
	}
}
