//go:build lab

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	apiPort    = 8080 // of the hatchd that builds the guests' images
	replyLimit = 3 * time.Minute
	readyLimit = 10 * time.Minute
	execLimit  = time.Minute

	minimalID  = "img_minimal"
	minimalMem = 96 // MiB
)

// TestMain runs the tests one after the other: each host uses all processors.
func TestMain(m *testing.M) { os.Exit(sandbox.Run(m.Run)) }

// world is a booted host with Hatch, as its user sees it.
type world struct {
	host   *Host
	client *client.Client
}

// newWorld boots a host with a release of Debian, and installs Hatch in it with the
// images of recipes. The data directory is on the given file system.
func newWorld(t *testing.T, release, fileSystem string, recipes ...string) *world {
	t.Helper()
	began := time.Now()
	cache := filepath.Join(repository(t), ".cache", "lab")
	im, err := BuildImage(t.Context(), release, cache, filepath.Join(repository(t), ".cache", "test"))
	if err != nil {
		t.Fatal(err)
	}
	emulator, err := BuildEmulator(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	took(t, "the host's image and QEMU are built or found", began)
	images := buildImages(t, recipes)
	dir := filepath.Join(cache, "run") // an earlier run that was killed may have left one
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cargo := filepath.Join(dir, "cargo")
	if err := PackCargo(t.Context(), repository(t), images, cargo); err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(t.Context(), emulator, im, dir, cargo)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{host: h}
	w.boot(t)
	t.Cleanup(func() { w.end(t) })
	began = time.Now()
	if err := h.Install(t.Context(), fileSystem); err != nil {
		t.Fatal(err)
	}
	w.connect(t)
	took(t, "Hatch is installed and serves", began)
	for _, recipe := range recipes {
		w.run(t, "hatch image build "+recipe)
	}
	return w
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// buildImages builds the guests' images on this machine, in the directory in which
// test/e2e keeps them, and returns it.
func buildImages(t *testing.T, recipes []string) string {
	t.Helper()
	began := time.Now()
	data, err := sandbox.PrivateDir(filepath.Join(repository(t), ".cache", "e2e"))
	if err != nil {
		t.Fatal(err)
	}
	d := &sandbox.Daemon{
		Program: filepath.Join(repository(t), "bin", "hatchd"), DataDir: filepath.Join(data, "lab"),
		LogFile: filepath.Join(t.TempDir(), "hatchd.log"), Port: apiPort, Env: []string{"HATCH_VMM=qemu"},
	}
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	for _, recipe := range recipes {
		if _, err := d.BuildImage(t.Context(), c, recipe); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.End(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	took(t, "the guests' images are built or found", began)
	return d.KeptImages()
}

// boot boots the host.
func (w *world) boot(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := w.host.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	took(t, "the host lets root log in", began)
}

// connect waits for hatchd, for a client of it.
func (w *world) connect(t *testing.T) {
	t.Helper()
	err := w.host.AwaitHatch(t.Context())
	if err == nil {
		w.client, err = w.host.Client(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// end shows what a failed test needs, and takes the host away.
func (w *world) end(t *testing.T) {
	if t.Failed() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		log, err := w.host.Run(ctx, "journalctl --no-pager -o short-monotonic -n 150; hatch ls -a", nil)
		t.Logf("the host's journal (%v):\n%s", err, log)
	}
	if err := w.host.CutPower(); err != nil {
		t.Error(err)
	}
}

func took(t *testing.T, what string, began time.Time) {
	t.Helper()
	t.Logf("%-45s %6.1f s", what, time.Since(began).Seconds())
}

// run runs a shell command as the host's root.
func (w *world) run(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	out, err := w.host.Run(ctx, command, nil)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// create makes a VM of the minimal image and waits until it is ready.
func (w *world) create(t *testing.T, name, vmm string) api.VM {
	t.Helper()
	began := time.Now()
	body := api.CreateVM{Name: name, VMM: vmm, MachineSpec: api.MachineSpec{ImageID: minimalID, MemMiB: new(minimalMem), DiskMiB: new(128)}}
	v, err := w.client.CreateVM(t.Context(), body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if err != nil {
		t.Fatalf("cannot create %s: %v", name, err)
	}
	t.Cleanup(func() { w.remove(t, v.ID) })
	v = w.await(t, v.ID, "ready")
	took(t, "a VM on "+v.VMM+" is ready", began)
	return v
}

// remove deletes a VM if it still exists.
func (w *world) remove(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), replyLimit)
	defer cancel()
	if err := w.client.DeleteVM(ctx, id); err != nil && !client.IsNotFound(err) {
		t.Errorf("cannot delete %s: %v", id, err)
	}
}

// await waits until the VM meets a condition.
func (w *world) await(t *testing.T, id, condition string) api.VM {
	t.Helper()
	v, err := w.client.WaitVM(t.Context(), id, condition, replyLimit)
	if err != nil {
		now, _ := w.client.GetVM(t.Context(), id)
		t.Fatalf("%s is not %s: %v; it is %s (%s)\nconsole:\n%s", id, condition, err, now.State, now.StateReason, w.console(t, id))
	}
	return v
}

func (w *world) console(t *testing.T, id string) string {
	t.Helper()
	out, _ := w.host.Run(t.Context(), "hatch logs --tail 30 "+id, nil) // as far as it can be read
	return out
}

// do calls a verb of the client on a VM and checks the state that it leads to.
func (w *world) do(t *testing.T, name, id, state string, verb func(context.Context, string) (api.VM, error)) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), replyLimit)
	defer cancel()
	v, err := verb(ctx, id)
	if err != nil {
		t.Fatalf("cannot %s: %v", name, err)
	}
	if v.State != state {
		t.Fatalf("after the %s it is %s (%s), not %s", name, v.State, v.StateReason, state)
	}
	took(t, name, began)
}

// inside runs a shell command in a guest, and returns what it printed.
func (w *world) inside(t *testing.T, id, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	r, err := w.client.RunExec(ctx, id, api.RunExec{Command: api.Command{Shell: command}})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%q in %s: %v, exit code %d\n%s%s\nconsole:\n%s", command, id, err, r.ExitCode, r.Stdout, r.Stderr, w.console(t, id))
	}
	return strings.TrimSpace(r.Stdout)
}

func (w *world) bootID(t *testing.T, id string) string {
	t.Helper()
	return w.inside(t, id, "cat /proc/sys/kernel/random/boot_id")
}

// check is one of hatchd doctor's.
type check struct{ Name, Status, Message, Fix string }

func (w *world) doctor(t *testing.T) map[string]check {
	t.Helper()
	out, _ := w.host.Run(t.Context(), "hatchd doctor -o json 2>/dev/null", nil) // it exits with 1 after a failed check
	var checks []check
	if err := json.Unmarshal([]byte(out), &checks); err != nil {
		t.Fatalf("the doctor's report: %v\n%s", err, out)
	}
	found := map[string]check{}
	for _, c := range checks {
		found[c.Name] = c
	}
	return found
}

// traces lists what VMs make on the host: processes, TAPs, mounts, cgroups, rules and
// directories. Snapshots are not in it: hatchd keeps some of its own, to clone from.
func (w *world) traces(t *testing.T) string {
	t.Helper()
	return w.run(t, `
		ps -eo comm= | grep -E '^(firecracker|qemu|jailer)'
		ls /sys/class/net
		findmnt -rno TARGET | grep /var/lib/hatch
		find /sys/fs/cgroup -type d -path '*hatch*' -name 'vm_*'
		nft -s list ruleset | sed '/^\tset \(flows\|dhcp_rate\) {/,/^\t}$/d' | grep -c . # without what packets fill
		ls /var/lib/hatch/vms | grep -v gone; true`)
}

// hostTest is one of several that share a host.
type hostTest struct {
	name string
	run  func(*testing.T, *world)
}

// runAll runs tests, and checks that nothing is left of each on the host.
func (w *world) runAll(t *testing.T, tests []hostTest) {
	empty := w.traces(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, w)
			w.requireTraces(t, empty)
		})
	}
}

// requireTraces checks that the host is as it was before. It waits for removals in the
// background, and for the end of a build of the warm pool.
func (w *world) requireTraces(t *testing.T, before string) {
	t.Helper()
	now := ""
	err := sandbox.Poll(replyLimit, func() (bool, error) {
		now = w.traces(t)
		return now == before, nil
	})
	if err != nil {
		t.Errorf("the host has\n%s\nand before, it had\n%s", now, before)
	}
}
