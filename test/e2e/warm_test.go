//go:build system

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// testWarm makes a warm snapshot of a minimal guest, and clones VMs from it.
func testWarm(t *testing.T, w *world) {
	before := w.traces(t)
	image := w.registerCopy(t, minimalID, "img_warm")
	w.warm(t, image.ID, "--memory", fmt.Sprint(minimalMem), "--disk", fmt.Sprint(smallDisk))
	w.requireHidden(t, image.ID)
	snapshot := slices.DeleteFunc(minus(w.traces(t), before), func(line string) bool { return !strings.HasPrefix(line, "snapshots ") })
	w.requireTraces(t, slices.Concat(before, snapshot))

	body := minimal()
	body.ImageID = image.ID
	first, second := w.createClone(t, "first", body), w.createClone(t, "second", body)
	requireDistinct(t, []api.VM{first, second})
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	if a, b := w.inside(t, first, bootID), w.inside(t, second, bootID); a != b {
		t.Errorf("the boot ids of two clones are %s and %s, want the same", a, b)
	}
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	third := w.createClone(t, "third", body)
	body.MemMiB = new(2 * minimalMem)
	other := w.create(t, body, client.CreateOptions{})
	if w.isClone(t, other) {
		t.Error("a VM of another shape is a clone")
	}
	for _, v := range []api.VM{first, second, third} {
		w.requireIdentity(t, v)
	}
	if _, err := w.client.RestartVM(t.Context(), third.ID); err != nil {
		t.Fatal(err)
	}
	w.await(t, third.ID, "ready", readyLimit)
	w.requireIdentity(t, third)
	if err := w.client.DeleteImage(t.Context(), image.ID); !client.HasCode(err, "image_in_use") {
		t.Errorf("an image that VMs use: %v", err)
	}
	if warm := w.warmGuests(t, image.ID); len(warm) != 1 {
		t.Errorf("the warm snapshots are %+v", warm)
	}
	for _, v := range []api.VM{first, second, third, other} {
		w.delete(t, v.ID)
	}
	if err := w.client.DeleteImage(t.Context(), image.ID); err != nil {
		t.Error(err)
	}
	w.requireTraces(t, before)
}

// testWarmAuto checks that hatchd makes a warm snapshot after a VM had to boot, and
// clones the next VM of its shape.
func testWarmAuto(t *testing.T, w *world) {
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, "HATCH_WARM=auto")
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	before := w.traces(t)
	body := minimal()
	body.ImageID, body.Name = w.registerCopy(t, minimalID, "img_auto").ID, "boots"
	first := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if w.isClone(t, first) {
		t.Fatal("the first VM of its shape is a clone")
	}
	began := time.Now()
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		warm := w.warmGuests(t, body.ImageID)
		return len(warm) == 1 && warm[0].State == api.WarmReady, nil
	})
	if err != nil {
		t.Fatalf("the warm snapshots are %+v: %v", w.warmGuests(t, body.ImageID), err)
	}
	took(t, "until a warm snapshot exists", began)
	second := w.createClone(t, "cloned", body)
	requireDistinct(t, []api.VM{first, second})
	for _, v := range []api.VM{first, second} {
		w.requireIdentity(t, v)
		w.delete(t, v.ID)
	}
	if err := w.client.DeleteImage(t.Context(), body.ImageID); err != nil {
		t.Error(err)
	}
	w.requireTraces(t, before)
}

// warmConfig has cloud-init do in a clone what it does in a VM that boots.
const warmConfig = "#cloud-config\n" +
	"write_files:\n- {path: /etc/from-config, content: written}\n" +
	"users:\n- default\n- {name: carol, shell: /bin/bash}\n" +
	"runcmd:\n- [sh, -c, 'id -un carol >/etc/ran']\n"

// testWarmDebian clones a VM from a warm Debian guest, with user data, keys and a name
// of its own, and compares it with another clone.
func testWarmDebian(t *testing.T, w *world) {
	if err := w.warmDebian(); err != nil {
		t.Fatal(err)
	}
	body := w.debian(warmConfig)
	body.ImageID = warmImage
	v := w.createClone(t, "delta", body)
	v = w.await(t, v.ID, "cloud-init", readyLimit)
	if c := condition(v, api.ConditionCloudInit); c.Status != api.StatusTrue {
		t.Errorf("cloud-init is %s: %s %s", c.Status, c.Reason, c.Message)
	}
	s := w.login(t, v) // with the request's key
	if got := s.run(t, "cat /etc/from-config /etc/ran; cut -d: -f7 /etc/passwd | tail -n 1; hostname"); got != "writtencarol\n/bin/bash\ndelta" {
		t.Errorf("it has %q", got)
	}
	requireUserData(t, s, warmConfig)
	if got := s.run(t, "ip -4 -o addr show scope global; cat /sys/class/net/e*/address"); strings.Count(got, "inet ") != 1 || !strings.Contains(got, v.GuestIP+"/") || !strings.Contains(strings.ToUpper(got), v.GuestMAC) {
		t.Errorf("it has %s, want %s and %s", got, v.GuestIP, v.GuestMAC)
	}
	other := w.shared(t, beta)
	requireDistinct(t, []api.VM{v, other})
	w.requireDistinctInside(t, []api.VM{v, other})
	w.delete(t, v.ID)
}

// registerCopy registers an image's files under another id.
func (w *world) registerCopy(t *testing.T, of, id string) api.Image {
	t.Helper()
	image, err := w.copyImage(t.Context(), of, id)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func (w *world) copyImage(ctx context.Context, of, id string) (api.Image, error) {
	first, err := w.client.GetImage(ctx, of)
	if err != nil {
		return api.Image{}, err
	}
	body := api.CreateImage{ID: id, KernelPath: first.KernelPath, RootfsPath: first.RootfsPath, ModulesPath: first.ModulesPath, BootArgs: first.BootArgs}
	for name, path := range map[string]*string{"kernel": &body.KernelPath, "root": &body.RootfsPath, "modules": &body.ModulesPath} {
		if *path, err = w.share(ctx, *path, filepath.Join(id, name)); err != nil {
			return api.Image{}, err
		}
	}
	return w.client.CreateImage(ctx, body)
}

// warm makes a warm snapshot of an image.
func (w *world) warm(t *testing.T, image string, flags ...string) {
	t.Helper()
	began := time.Now()
	if got := w.hatch(t, append([]string{"image", "warm", image}, flags...)...); got != image+"\n" {
		t.Errorf("hatch image warm prints %q", got)
	}
	took(t, "until "+image+" has a warm snapshot", began)
	warm := w.warmGuests(t, image)
	if len(warm) != 1 || warm[0].State != api.WarmReady || warm[0].SizeBytes == 0 {
		t.Fatalf("the warm snapshots are %+v", warm)
	}
}

// warmGuests lists the warm snapshots of an image.
func (w *world) warmGuests(t *testing.T, image string) []api.WarmGuest {
	t.Helper()
	img, err := w.client.GetImage(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	return img.Warm
}

// requireHidden checks that users see neither the VM nor the snapshot of a warm
// snapshot.
func (w *world) requireHidden(t *testing.T, image string) {
	t.Helper()
	for v, err := range w.client.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil || v.ImageID == image {
			t.Errorf("VMs: %+v, %v", v, err)
		}
	}
	if all, err := w.client.ListSnapshots(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("snapshots: %+v, %v", all, err)
	}
}

// createClone makes a VM that must be a clone.
func (w *world) createClone(t *testing.T, name string, body api.CreateVM) api.VM {
	t.Helper()
	body.Name = name
	began := time.Now()
	v := w.create(t, body, client.CreateOptions{})
	took(t, "a clone", began)
	if !w.isClone(t, v) {
		t.Fatalf("%s has booted", v.ID)
	}
	if v.SnapshotID != "" {
		t.Errorf("it shows the snapshot %s", v.SnapshotID)
	}
	return w.await(t, v.ID, "ready", readyLimit)
}

// isClone reports whether hatchd has cloned the VM, according to its log.
func (w *world) isClone(t *testing.T, v api.VM) bool {
	t.Helper()
	log, err := os.ReadFile(w.daemon.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "vm cloned") && strings.Contains(line, v.ID) {
			return true
		}
	}
	return false
}
