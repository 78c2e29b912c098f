//go:build system

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// testWarm keeps a minimal guest booted, and makes VMs from it.
func testWarm(t *testing.T, w *world) {
	before := w.look(t)
	image := w.registerAgain(t, minimalID, "img_warm")
	w.warm(t, image.ID, "--memory", fmt.Sprint(minimalMem), "--disk", fmt.Sprint(smallDisk))
	w.requireHidden(t, image.ID)
	kept := slices.DeleteFunc(minus(w.look(t), before), func(line string) bool { return !strings.HasPrefix(line, "snapshots ") })
	w.requireOnly(t, slices.Concat(before, kept))

	body := minimal()
	body.ImageID = image.ID
	first, second := w.copyOf(t, "first", body), w.copyOf(t, "second", body)
	requireDistinct(t, []api.VM{first, second})
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	if a, b := w.inside(t, first, bootID), w.inside(t, second, bootID); a != b {
		t.Errorf("the two have booted as %s and %s, which a copy does not", a, b)
	}
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	third := w.copyOf(t, "third", body)
	body.MemMiB = new(2 * minimalMem)
	other := w.create(t, body, client.CreateOptions{})
	if w.isCopy(t, other) {
		t.Error("a VM of another shape is a copy")
	}
	for _, v := range []api.VM{first, second, third} {
		w.requireItself(t, v)
	}
	if _, err := w.client.RestartVM(t.Context(), third.ID); err != nil {
		t.Fatal(err)
	}
	w.await(t, third.ID, "ready", readyLimit)
	w.requireItself(t, third)
	if err := w.client.DeleteImage(t.Context(), image.ID); !client.HasCode(err, "image_in_use") {
		t.Errorf("an image that VMs use: %v", err)
	}
	if kept := w.kept(t, image.ID); len(kept) != 1 {
		t.Errorf("after that there are %+v", kept)
	}
	for _, v := range []api.VM{first, second, third, other} {
		w.delete(t, v.ID)
	}
	if err := w.client.DeleteImage(t.Context(), image.ID); err != nil {
		t.Error(err)
	}
	w.requireOnly(t, before)
}

// testWarmByItself asks for nothing: once a VM had to boot, the next one of its
// shape is a copy.
func testWarmByItself(t *testing.T, w *world) {
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, "HATCH_WARM=auto")
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	before := w.look(t)
	body := minimal()
	body.ImageID, body.Name = w.registerAgain(t, minimalID, "img_auto").ID, "boots"
	first := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if w.isCopy(t, first) {
		t.Fatal("the first of its shape has not booted")
	}
	began := time.Now()
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		kept := w.kept(t, body.ImageID)
		return len(kept) == 1 && kept[0].State == api.WarmReady, nil
	})
	if err != nil {
		t.Fatalf("kept are %+v: %v", w.kept(t, body.ImageID), err)
	}
	took(t, "until a guest is kept that nobody asked for", began)
	second := w.copyOf(t, "copied", body)
	requireDistinct(t, []api.VM{first, second})
	for _, v := range []api.VM{first, second} {
		w.requireItself(t, v)
		w.delete(t, v.ID)
	}
	if err := w.client.DeleteImage(t.Context(), body.ImageID); err != nil {
		t.Error(err)
	}
	w.requireOnly(t, before)
}

// warmConfig has cloud-init do what it does in a VM that boots.
const warmConfig = "#cloud-config\n" +
	"write_files:\n- {path: /etc/from-config, content: written}\n" +
	"users:\n- default\n- {name: carol, shell: /bin/bash}\n" +
	"runcmd:\n- [sh, -c, 'id -un carol >/etc/ran']\n"

// testWarmDebian makes two VMs from one Debian guest, each with user data, keys
// and a name.
func testWarmDebian(t *testing.T, w *world) {
	image := w.registerAgain(t, api.DefaultImageID, "img_warm_debian")
	w.warm(t, image.ID, "--memory", fmt.Sprint(debianMem))
	var vms []api.VM
	own := map[string]string{}
	for _, name := range []string{"delta", "epsilon"} {
		body := w.debian(warmConfig)
		body.ImageID = image.ID
		v := w.copyOf(t, name, body)
		v = w.await(t, v.ID, "cloud-init", readyLimit)
		if c := condition(v, api.ConditionCloudInit); c.Status != api.StatusTrue {
			t.Errorf("cloud-init is %s: %s %s", c.Status, c.Reason, c.Message)
		}
		s := w.login(t, v) // with the key of the request
		if got := s.run(t, "cat /etc/from-config /etc/ran; cut -d: -f7 /etc/passwd | tail -n 1; hostname"); got != "writtencarol\n/bin/bash\n"+name {
			t.Errorf("%s has %q", name, got)
		}
		requireUserData(t, s, warmConfig)
		if got := s.run(t, "ip -4 -o addr show scope global; cat /sys/class/net/e*/address"); strings.Count(got, "inet ") != 1 || !strings.Contains(got, v.GuestIP+"/") || !strings.Contains(strings.ToUpper(got), v.GuestMAC) {
			t.Errorf("%s has %s, want %s and %s", name, got, v.GuestIP, v.GuestMAC)
		}
		for what, value := range map[string]string{"SSH host key": s.hostKey, "machine id": s.run(t, "cat /etc/machine-id")} {
			if other := own[what+value]; other != "" || value == "" {
				t.Errorf("%s and %q have the same %s %q", name, other, what, value)
			}
			own[what+value] = name
		}
		vms = append(vms, v)
	}
	requireDistinct(t, vms)
	for _, v := range vms {
		w.delete(t, v.ID)
	}
	if err := w.client.DeleteImage(t.Context(), image.ID); err != nil {
		t.Error(err)
	}
}

// registerAgain registers an image's files under another id.
func (w *world) registerAgain(t *testing.T, of, id string) api.Image {
	t.Helper()
	first, err := w.client.GetImage(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	image, err := w.client.CreateImage(t.Context(), api.CreateImage{
		ID: id, KernelPath: first.KernelPath, RootfsPath: first.RootfsPath, ModulesPath: first.ModulesPath, BootArgs: first.BootArgs,
	})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// warm keeps a guest of an image booted.
func (w *world) warm(t *testing.T, image string, flags ...string) {
	t.Helper()
	began := time.Now()
	if got := w.hatch(t, append([]string{"image", "warm", image}, flags...)...); got != image+"\n" {
		t.Errorf("hatch image warm prints %q", got)
	}
	took(t, "until a guest of "+image+" is kept booted", began)
	kept := w.kept(t, image)
	if len(kept) != 1 || kept[0].State != api.WarmReady || kept[0].SizeBytes == 0 {
		t.Fatalf("kept are %+v", kept)
	}
}

func (w *world) kept(t *testing.T, image string) []api.WarmGuest {
	t.Helper()
	img, err := w.client.GetImage(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	return img.Warm
}

// requireHidden checks that users do not see what hatchd does for itself.
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

// copyOf makes a VM that must be a copy of a guest that is kept.
func (w *world) copyOf(t *testing.T, name string, body api.CreateVM) api.VM {
	t.Helper()
	body.Name = name
	began := time.Now()
	v := w.create(t, body, client.CreateOptions{})
	took(t, "a copy", began)
	if !w.isCopy(t, v) {
		t.Fatalf("%s has booted", v.ID)
	}
	if v.SnapshotID != "" {
		t.Errorf("it shows the snapshot %s", v.SnapshotID)
	}
	return w.await(t, v.ID, "ready", readyLimit)
}

// isCopy reports whether hatchd has made the VM from a guest that was kept.
func (w *world) isCopy(t *testing.T, v api.VM) bool {
	t.Helper()
	log, err := os.ReadFile(w.daemon.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "vm made from a snapshot") && strings.Contains(line, v.ID) {
			return true
		}
	}
	return false
}
