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

// moveInstance lets the guest see the seed that its host has put in the place of
// the original's, and has what cloud-init keeps agree with it.
func (g *Guest) moveInstance(_ context.Context, as wire.Identity) error {
	err := g.refreshSeed()
	switch {
	case !HasCloudInit(g.root):
		return nil // and nobody reads the seed
	case err != nil:
		return err
	case as.CloudInit:
		return g.prepareCloudInit(keepKeys)
	}
	if err := g.keepInstance(as.InstanceID); err != nil || !as.SSHKeys {
		return err
	}
	return g.prepareCloudInit(keepKeys + addKeys)
}

// refreshSeed drops what the kernel has read of the original's seed.
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

// mountsOf returns where a device of /dev is mounted, the last mount first.
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

// dropCache drops what the kernel has in memory of a block device.
func dropCache(device string) (err error) {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("cannot open the seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("cannot drop what is in memory of the seed disk: %w", err)
	}
	return nil
}

// instanceForm is an instance id that can be a directory's name.
var instanceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// keepInstance makes what cloud-init did for the original what it did for the
// new instance: at the next boot it does none of it again.
func (g *Guest) keepInstance(id string) error {
	text, err := os.ReadFile(g.path("var/lib/cloud/data/instance-id"))
	if absent(err) {
		return nil // it has not run yet
	}
	old := string(bytes.TrimSpace(text))
	if err != nil || old == id || !instanceForm.MatchString(old) {
		return err
	}
	instances := g.path("var/lib/cloud/instances")
	if err := os.Rename(filepath.Join(instances, old), filepath.Join(instances, id)); err != nil && !absent(err) {
		return fmt.Errorf("cannot keep what cloud-init has done: %w", err)
	}
	link := g.path("var/lib/cloud/instance")
	if err := errors.Join(remove(link), os.Symlink("/var/lib/cloud/instances/"+id, link)); err != nil {
		return fmt.Errorf("cannot keep what cloud-init has done: %w", err)
	}
	for _, path := range []string{"run/cloud-init/.instance-id", "var/lib/cloud/data/instance-id"} { // the last one says that it is done
		if err := edit(g.path(path), func([]byte) []byte { return []byte(id + "\n") }); err != nil {
			return err
		}
	}
	return nil
}

// runtimeConfig is read by cloud-init until the next boot. The host keys are new
// already; were they made once more, who has logged in meanwhile would be
// warned.
const (
	runtimeConfig = "run/cloud-init/cloud.cfg"
	keepKeys      = "ssh_deletekeys: false\n"
	// addKeys leaves one of its modules, which does its work also for an instance
	// that has been served.
	addKeys = "cloud_init_modules: [[ssh, always]]\ncloud_config_modules: []\ncloud_final_modules: []\n"
)

// prepareCloudInit takes back that cloud-init has ended, and for which instance:
// while it finds that, it takes what it keeps for the seed's content. It will
// work as config says.
func (g *Guest) prepareCloudInit(config string) error {
	var faults []error
	for _, path := range []string{"result.json", "status.json", ".instance-id"} {
		faults = append(faults, remove(g.path("run/cloud-init", path)))
	}
	faults = append(faults, os.MkdirAll(g.path("run/cloud-init"), 0o755), g.setRuntimeConfig(config))
	return errors.Join(faults...)
}

// setRuntimeConfig adds these lines to what the image has found at its boot, in
// the place of those that were added when it was copied before.
func (g *Guest) setRuntimeConfig(lines string) error {
	path := g.path(runtimeConfig)
	text, err := os.ReadFile(path)
	if err != nil && !absent(err) {
		return err
	}
	found := strings.NewReplacer(keepKeys, "", addKeys, "").Replace(string(text))
	if found != "" && !strings.HasSuffix(found, "\n") {
		found += "\n"
	}
	return os.WriteFile(path, []byte(found+lines), 0o644)
}

// cloudInitStage is a part of cloud-init's work: units of systemd, of which an
// image has some, or commands.
type cloudInitStage struct {
	units    []string
	commands [][]string
}

// cloudInitStages are all of it. After the first one keys of the user's own may
// be there for sshd.
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

// runCloudInit runs cloud-init for the instance that its seed names, as a boot
// would, until it has ended. What it cannot even begin it leaves as an error in
// cloud-init's own result.
func (g *Guest) runCloudInit(ctx context.Context) {
	keys := g.publicKeys()
	for _, stage := range cloudInitStages {
		if err := g.runStage(ctx, stage); err != nil && ctx.Err() == nil {
			g.log.Error("cloud-init failed for a copied guest", "err", err)
			g.leaveResult(err)
			return
		}
		if now := g.publicKeys(); now != keys {
			keys = now
			if err := g.reloadSSH(ctx); err != nil {
				g.log.Error("sshd has not taken the keys of the user's own", "err", err)
			}
		}
	}
}

// runStage lets cloud-init take its time. A command that ends with a failure
// has told so in cloud-init's own status.
func (g *Guest) runStage(ctx context.Context, stage cloudInitStage) error {
	if g.hasSystemd() {
		args := []string{"restart"}
		for _, unit := range stage.units {
			if g.hasUnit(unit) {
				args = append(args, unit)
			}
		}
		if len(args) > 1 {
			return g.ignoreTold(g.run(ctx, 0, g.program("systemctl"), args...))
		}
	}
	for _, command := range stage.commands {
		if err := g.ignoreTold(g.run(ctx, 0, g.program("cloud-init"), command...)); err != nil {
			return err
		}
	}
	return nil
}

// ignoreTold drops an error when cloud-init has begun, and tells of its errors
// itself at its end.
func (g *Guest) ignoreTold(err error) error {
	if _, statusErr := os.Stat(g.path("run/cloud-init/status.json")); statusErr == nil {
		return nil
	}
	return err
}

// leaveResult says in cloud-init's place how it ended.
func (g *Guest) leaveResult(err error) {
	result := map[string]any{"v1": map[string]any{"datasource": nil, "errors": []string{err.Error()}}}
	text, _ := json.Marshal(result) // strings only
	if err := os.WriteFile(g.path("run/cloud-init/result.json"), text, 0o644); err != nil {
		g.log.Error("cannot tell that cloud-init failed", "err", err)
	}
}

// publicKeys is a digest of the host keys.
func (g *Guest) publicKeys() [sha256.Size]byte {
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
