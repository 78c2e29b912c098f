package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// seedSerial is the serial of the disk that cloud-init reads.
const seedSerial = "hatch-seed"

// HasCloudInit reports whether the image below root has cloud-init.
func HasCloudInit(root string) bool {
	for _, path := range []string{"usr/bin/cloud-init", "usr/local/bin/cloud-init"} {
		if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
			return true
		}
	}
	return false
}

// changeInstance has the guest read the new seed disk, with which the host has replaced
// the original's, and changes cloud-init's files to match it.
func (g *Guest) changeInstance(_ context.Context, as wire.Identity) error {
	err := g.refreshSeed()
	switch {
	case !HasCloudInit(g.root):
		return nil // no program reads the seed
	case err != nil:
		return err
	case as.CloudInit:
		return g.prepareCloudInit(keepHostKeys)
	}
	if err := g.renameInstance(as.InstanceID); err != nil || !as.SSHKeys {
		return err
	}
	return g.prepareCloudInit(keepHostKeys + onlySSHKeys)
}

// refreshSeed drops the kernel's cache of the seed disk, which is the original's.
func (g *Guest) refreshSeed() error {
	cmdline, err := os.ReadFile(g.path("proc/cmdline"))
	if err != nil {
		return err
	}
	device, ok := drives.BySerial(g.path("sys"), g.path("dev"), drives.Order(string(cmdline)))[seedSerial]
	if !ok {
		return nil
	}
	mounts, err := os.ReadFile(g.path("proc/mounts"))
	if err != nil {
		return err
	}
	for _, path := range mountsOf(string(mounts), filepath.Base(device)) {
		if err := g.kernel.unmount(g.path(path)); err != nil {
			return fmt.Errorf("cannot unmount the seed disk from %s: %w", path, err)
		}
	}
	return g.kernel.dropCache(device)
}

// mountsOf returns the mount points of a device in /dev, the last mount first.
func mountsOf(mounts, device string) []string {
	var paths []string
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "/dev/"+device {
			path := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[1])
			paths = append([]string{path}, paths...)
		}
	}
	return paths
}

// dropCache drops the kernel's cache of a block device.
func dropCache(device string) (err error) {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("cannot open the seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("cannot drop the cache of the seed disk: %w", err)
	}
	return nil
}

// instanceForm matches an instance id that is valid as a directory's name.
var instanceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// renameInstance gives the records of what cloud-init has done for the original the new
// instance's id, so that cloud-init does none of it again at the next boot.
func (g *Guest) renameInstance(id string) error {
	text, err := os.ReadFile(g.path("var/lib/cloud/data/instance-id"))
	if absent(err) {
		return nil // cloud-init has not run yet
	}
	old := string(bytes.TrimSpace(text))
	if err != nil || old == id || !instanceForm.MatchString(old) {
		return err
	}
	instances := g.path("var/lib/cloud/instances")
	if err := os.Rename(filepath.Join(instances, old), filepath.Join(instances, id)); err != nil && !absent(err) {
		return fmt.Errorf("cannot rename cloud-init's instance: %w", err)
	}
	link := g.path("var/lib/cloud/instance")
	if err := errors.Join(remove(link), os.Symlink("/var/lib/cloud/instances/"+id, link)); err != nil {
		return fmt.Errorf("cannot rename cloud-init's instance: %w", err)
	}
	for _, path := range []string{"run/cloud-init/.instance-id", "var/lib/cloud/data/instance-id"} { // the last one marks the end, see above
		if err := edit(g.path(path), func([]byte) []byte { return []byte(id + "\n") }); err != nil {
			return err
		}
	}
	return nil
}

const (
	// runtimeConfig is read by cloud-init until the next boot.
	runtimeConfig = "run/cloud-init/cloud.cfg"
	// keepHostKeys keeps the host keys, which are new already: if cloud-init replaced
	// them, SSH would warn users who have logged in meanwhile.
	keepHostKeys = "ssh_deletekeys: false\n"
	// onlySSHKeys leaves one of cloud-init's modules, which adds SSH keys also to an
	// instance that cloud-init has finished.
	onlySSHKeys = "cloud_init_modules: [[ssh, always]]\ncloud_config_modules: []\ncloud_final_modules: []\n"
)

// prepareCloudInit removes the files that record cloud-init's end and its instance: as
// long as they exist, cloud-init uses its cache instead of the seed. It adds config to
// cloud-init's configuration.
func (g *Guest) prepareCloudInit(config string) error {
	var failed []error
	for _, path := range []string{"result.json", "status.json", ".instance-id"} {
		failed = append(failed, remove(g.path("run/cloud-init", path)))
	}
	failed = append(failed, os.MkdirAll(g.path("run/cloud-init"), 0o755), g.setRuntimeConfig(config))
	return errors.Join(failed...)
}

// setRuntimeConfig adds lines to the runtime configuration, which cloud-init has
// written at boot. It replaces lines that it added when the original was a clone.
func (g *Guest) setRuntimeConfig(lines string) error {
	path := g.path(runtimeConfig)
	text, err := os.ReadFile(path)
	if err != nil && !absent(err) {
		return err
	}
	found := strings.NewReplacer(keepHostKeys, "", onlySSHKeys, "").Replace(string(text))
	if found != "" && !strings.HasSuffix(found, "\n") {
		found += "\n"
	}
	return os.WriteFile(path, []byte(found+lines), 0o644)
}

// cloudInitStage is a part of cloud-init's work: as units of systemd, of which an
// image has some, or as commands of cloud-init.
type cloudInitStage struct {
	units    []string
	commands [][]string
}

// cloudInitStages are all parts of cloud-init's work. The first one may install the
// user's own host keys.
var cloudInitStages = []cloudInitStage{
	{
		units:    []string{"cloud-init-main.service", "cloud-init-local.service", "cloud-init.service", "cloud-init-network.service"},
		commands: [][]string{{"init", "--local"}, {"init"}},
	},
	{
		units:    []string{"cloud-config.service", "cloud-final.service"},
		commands: [][]string{{"modules", "--mode=config"}, {"modules", "--mode=final"}},
	},
}

// runCloudInit runs cloud-init for the instance in the seed, as at a boot, and waits
// for its end. If cloud-init cannot be started, it writes the error to cloud-init's
// result.
func (g *Guest) runCloudInit(ctx context.Context) {
	keys := g.hostKeyDigest()
	for _, stage := range cloudInitStages {
		if err := g.runStage(ctx, stage); err != nil && ctx.Err() == nil {
			g.log.Error("cannot run cloud-init for a clone", logkey.Error, err)
			g.writeResult(err)
			return
		}
		if now := g.hostKeyDigest(); now != keys {
			keys = now
			if err := g.reloadSSH(ctx); err != nil {
				g.log.Error("sshd has not loaded the user's own host keys", logkey.Error, err)
			}
		}
	}
}

// runStage runs a part of cloud-init's work, without a timeout. A command that fails
// has reported that in cloud-init's status.
func (g *Guest) runStage(ctx context.Context, stage cloudInitStage) error {
	if g.hasSystemd() {
		args := []string{"restart"}
		for _, unit := range stage.units {
			if g.hasUnit(unit) {
				args = append(args, unit)
			}
		}
		if len(args) > 1 {
			return g.ignoreReported(g.run(ctx, 0, g.program("systemctl"), args...))
		}
	}
	for _, command := range stage.commands {
		if err := g.ignoreReported(g.run(ctx, 0, g.program("cloud-init"), command...)); err != nil {
			return err
		}
	}
	return nil
}

// ignoreReported drops an error if cloud-init has started: then it reports its errors
// itself.
func (g *Guest) ignoreReported(err error) error {
	if _, statusErr := os.Stat(g.path("run/cloud-init/status.json")); statusErr == nil {
		return nil
	}
	return err
}

// writeResult writes cloud-init's result, which cloud-init could not.
func (g *Guest) writeResult(err error) {
	result := map[string]any{"v1": map[string]any{"datasource": nil, "errors": []string{err.Error()}}}
	text, _ := json.Marshal(result) // strings only
	if err := os.WriteFile(g.path("run/cloud-init/result.json"), text, 0o644); err != nil {
		g.log.Error("cannot write cloud-init's result", logkey.Error, err)
	}
}

// hostKeyDigest returns a digest of the public host keys.
func (g *Guest) hostKeyDigest() [sha256.Size]byte {
	paths, _ := filepath.Glob(g.path("etc/ssh/ssh_host_*_key.pub")) // the pattern is well formed
	sum := sha256.New()
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil {
			sum.Write(text)
		}
	}
	return [sha256.Size]byte(sum.Sum(nil))
}
