//go:build linux && amd64

package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

// fakeAPI serves Firecracker's API: it records requests and sends the answers of a
// test.
type fakeAPI struct {
	root    string
	answers map[string]answer // by method and path; others are answered with 204
	flush   func()            // called on FlushMetrics

	mu       sync.Mutex
	requests []request
	body     map[string]string // of the last request, by path
}

// request is one request to the API.
type request struct{ method, path, body string }

type answer struct {
	status int
	text   string
}

func newFakeAPI(t *testing.T, answers map[string]answer) *fakeAPI {
	t.Helper()
	root, err := os.MkdirTemp("", "fc") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeAPI{root: root, answers: answers, body: map[string]string{}}
	l, err := net.Listen("unix", filepath.Join(root, apiSocket))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), os.RemoveAll(root)); err != nil {
			t.Error(err)
		}
		<-done
	})
	return p
}

func (p *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	key := r.Method + " " + r.URL.Path
	p.mu.Lock()
	p.requests = append(p.requests, request{r.Method, r.URL.Path, strings.TrimSpace(string(body))})
	p.body[r.URL.Path] = strings.TrimSpace(string(body))
	p.mu.Unlock()
	if p.flush != nil && strings.Contains(string(body), "FlushMetrics") {
		p.flush()
	}
	if a, ok := p.answers[key]; ok {
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.text)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// The fields are those of Firecracker's OpenAPI description since 1.12.
func TestConfigureSendsTheSpec(t *testing.T) {
	spec := vmm.Spec{
		ID: "vm_1", Dir: "/d", VCPUs: 2, MemMiB: 256, Kernel: "/k", Initramfs: "/i", Cmdline: "quiet panic=5", Memory: "/m",
		Disks: []vmm.Disk{{Serial: "hatch-root", ReadOnly: true}, {Serial: "hatch-disk"}},
		NIC:   &vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
	}
	want := map[string]string{
		"/machine-config":          `{"vcpu_count":2,"mem_size_mib":256,"track_dirty_pages":true}`,
		"/boot-source":             `{"kernel_image_path":"kernel","initrd_path":"initramfs","boot_args":"quiet panic=5 reboot=k pci=off hatch.disks=hatch-root,hatch-disk"}`,
		"/drives/disk0":            `{"drive_id":"disk0","path_on_host":"disk0","is_read_only":true,"is_root_device":false}`,
		"/drives/disk1":            `{"drive_id":"disk1","path_on_host":"disk1","is_read_only":false,"is_root_device":false,"cache_type":"Writeback"}`,
		"/network-interfaces/net0": `{"iface_id":"net0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:01"}`,
		"/vsock":                   `{"guest_cid":3,"uds_path":"vsock.sock"}`,
		"/entropy":                 `{}`,
	}
	for v, free := range map[version]string{{1, 13, 2}: "", {1, 14, 0}: `,"free_page_reporting":true`} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			p := newFakeAPI(t, nil)
			if err := configure(t.Context(), newAPI(p.root), v, spec, "tap0"); err != nil {
				t.Fatal(err)
			}
			want["/balloon"] = `{"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":10` + free + `}`
			if !reflect.DeepEqual(p.body, want) {
				t.Errorf("%s received %v,\nwant %v", v, p.body, want)
			}
		})
	}
}

// A machine whose Firecracker did not answer Adopt has no version yet.
func TestTheFirstAnswerTellsTheVersionOfAnAdoptedMachine(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *machine) error{
		"health": func(ctx context.Context, m *machine) error {
			_, err := m.Health(ctx)
			return err
		},
		"save": func(ctx context.Context, m *machine) error { return m.checkSavable(ctx, vmm.Spec{Memory: "/m"}) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeAPI(t, map[string]answer{
				"GET /machine-config": {http.StatusOK, `{"track_dirty_pages":true}`},
				"GET /":               {http.StatusServiceUnavailable, ""},
			})
			h := vmm.Handle{ID: "vm_1", PID: os.Getpid()}
			m := &machine{Process: process.New("Firecracker", h, nil, nil), api: newAPI(p.root), counters: &counters{}}
			if err := ask(t.Context(), m); err == nil || m.Handle().Version != "" {
				t.Errorf("without an answer the version is %q, %v", m.Handle().Version, err)
			}
			p.answers["GET /"] = answer{http.StatusOK, `{"state":"Running","vmm_version":"1.16.2"}`}
			if err := ask(t.Context(), m); err != nil || m.Handle().Version != "1.16.2" {
				t.Errorf("after an answer the version is %q, %v", m.Handle().Version, err)
			}
			m.SetHandle(vmm.Handle{ID: "vm_1", PID: os.Getpid(), Version: "1.16.1"})
			m.version.Store(nil)
			if err := ask(t.Context(), m); !errs.Is(err, errs.NotFound) {
				t.Errorf("another version than the handle's: %v, want not found", err)
			}
		})
	}
}

func TestLoadUsesTheFieldsOfTheVersion(t *testing.T) {
	for v, field := range map[version]string{{1, 12, 1}: "enable_diff_snapshots", {1, 15, 2}: "enable_diff_snapshots", {1, 16, 2}: "track_dirty_pages"} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			p := newFakeAPI(t, nil)
			m := &machine{api: newAPI(p.root)}
			m.version.Store(&v)
			if err := m.load(t.Context(), m.api, vmm.Spec{NIC: &vmm.NIC{}}, "tap7"); err != nil {
				t.Fatal(err)
			}
			want := `{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"` + field +
				`":true,"resume_vm":false,"network_overrides":[{"iface_id":"net0","host_dev_name":"tap7"}]}`
			if got := p.body["/snapshot/load"]; got != want {
				t.Errorf("%s received %s,\nwant %s", v, got, want)
			}
		})
	}
}

func TestARefusalQuotesFirecrackersMessage(t *testing.T) {
	p := newFakeAPI(t, map[string]answer{"PUT /actions": {400, `{"fault_message":"The kernel is no ELF."}`}})
	err := newAPI(p.root).action(t.Context(), "InstanceStart")
	var refused *refusal
	if !errors.As(err, &refused) || refused.status != 400 || !strings.Contains(err.Error(), "The kernel is no ELF.") {
		t.Errorf("the error is %v", err)
	}
}

func TestPausingAPausedMachineIsNoError(t *testing.T) {
	for state, ok := range map[string]bool{"Paused": true, "Running": false, "Not started": false} {
		t.Run(state, func(t *testing.T) {
			p := newFakeAPI(t, map[string]answer{
				"PATCH /vm": {400, `{"fault_message":"no"}`}, "GET /": {200, `{"id":"x","state":"` + state + `","vmm_version":"1.12.1"}`},
			})
			if err := newAPI(p.root).setState(t.Context(), "Paused"); (err == nil) != ok {
				t.Errorf("pausing a machine in the state %q: %v", state, err)
			}
		})
	}
}

// A process that a guest has compromised may send any answer.
func TestAnAnswerThatIsTooLongIsAnError(t *testing.T) {
	p := newFakeAPI(t, map[string]answer{"GET /": {200, strings.Repeat(" ", maxAnswer+1) + `{"id":"x"}`}})
	if _, err := newAPI(p.root).instance(t.Context()); err == nil {
		t.Error("the whole answer was read")
	}
}

func TestDialFollowsNoLinkOutOfTheFolder(t *testing.T) {
	p := newFakeAPI(t, nil)
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(p.root, apiSocket), filepath.Join(dir, apiSocket)); err != nil {
		t.Fatal(err)
	}
	if conn, err := dialWithin(t.Context(), dir, apiSocket); err == nil {
		_ = conn.Close()
		t.Error("a link to another socket was followed")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dialWithin(t.Context(), dir, "file"); err == nil {
		t.Error("a regular file was dialled")
	}
	conn, err := dialWithin(t.Context(), p.root, apiSocket)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestConnectPortReadsOnlyItsAnswer(t *testing.T) {
	for output, ok := range map[string]bool{
		"OK 1073741824\nagent": true, "": false, "NO\nagent": false, strings.Repeat("O", 100): false,
	} {
		t.Run(output, func(t *testing.T) {
			here, there := net.Pipe()
			go func() {
				_, _ = there.Read(make([]byte, 64))
				_, _ = io.WriteString(there, output)
				_ = there.Close()
			}()
			err := connectPort(here, AgentPort)
			if (err == nil) != ok {
				t.Errorf("%q: %v", output, err)
			}
			if rest, _ := io.ReadAll(here); ok && string(rest) != "agent" {
				t.Errorf("the rest after the answer is %q", rest)
			}
			_ = here.Close()
			_ = there.Close()
		})
	}
}

func FuzzMetrics(f *testing.F) {
	f.Add([]byte(`{"block":{"read_bytes":1,"write_bytes":2,"read_count":3,"write_count":4}}`))
	f.Add([]byte(`{"block":{"read_bytes":18446744073709551615}}`))
	f.Add([]byte(`{"balloon":{"stats_updates_count":2,"stats_update_fails":1}}`))
	f.Add([]byte(`{"block":[]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		d := parseMetrics(line)
		if max(d.ReadBytes, d.WriteBytes, d.ReadOps, d.WriteOps, d.MemoryReports, d.MemoryFailures) > maxDelta {
			t.Errorf("%s counts as %+v", line, d)
		}
		if d != (counts{}) && !json.Valid(line) {
			t.Errorf("%q counts as %+v", line, d)
		}
	})
}
