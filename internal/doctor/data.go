package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/recipe"
)

const (
	minDiskMiB  = 2 << 10
	goodDiskMiB = 10 << 10
)

// dataDir checks what hatchd refuses to start with.
func (e examiner) dataDir(context.Context) Check {
	const name = "data_dir"
	if _, err := e.Stat(e.DataDir); err != nil {
		return pass(name, "%s does not exist yet", e.DataDir)
	}
	err := e.Owned(e.DataDir, e.TrustDataDirParents)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return warn(name, "cannot check who can change %s", e.DataDir).hint("run hatch doctor as root")
	case err != nil:
		return fail(name, "%v", err).hint("hatchd does not start with a data directory that other users can change or replace")
	}
	return pass(name, "only root can change %s", e.DataDir)
}

func (e examiner) disk(context.Context) Check {
	const name = "disk"
	free, err := e.FreeMiB(e.existing())
	switch {
	case err != nil:
		return warn(name, "cannot read the free disk space below %s: %v", e.DataDir, err)
	case free < minDiskMiB:
		return fail(name, "%d MiB are free for %s; the default image and one VM need some %d MiB", free, e.DataDir, minDiskMiB).
			hint("free some space, or set HATCH_DATA_DIR to a larger file system")
	case free < goodDiskMiB:
		return warn(name, "%d MiB are free for %s", free, e.DataDir).hint("growing disks of VMs may fill it")
	}
	return pass(name, "%d MiB free for %s", free, e.DataDir)
}

// reflink passes either way: reflinks only make copies of disks faster.
func (e examiner) reflink(context.Context) Check {
	const name = "reflink"
	can, err := e.Reflink(e.existing())
	switch {
	case err != nil:
		return warn(name, "cannot test whether files can share blocks: %v", err)
	case can:
		return pass(name, "copies of disks share their blocks")
	}
	return pass(name, "no; whole disks are copied sparsely (XFS or btrfs would share blocks)")
}

// existing is the data directory or the nearest directory above it that exists.
func (e examiner) existing() string {
	dir := e.DataDir
	for {
		if _, err := e.Stat(dir); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return dir
		}
		dir = parent
	}
}

func (e examiner) agent(context.Context) Check {
	const name = "agent"
	if _, err := e.Stat(e.AgentPath); err != nil {
		return fail(name, "the program that runs in guests is not at %s", e.AgentPath).
			hint("put hatch-agent beside hatchd (make build does), or set HATCH_AGENT_PATH")
	}
	return pass(name, "the program that runs in guests exists")
}

// buildTools are programs that hatch image build runs, and their Debian packages.
var buildTools = []struct{ program, pkg string }{
	{"mmdebstrap", "mmdebstrap"},
	{"mke2fs", "e2fsprogs"},
}

func (e examiner) buildTools(context.Context) Check {
	const name = "build_tools"
	var missing, packages []string
	for _, t := range buildTools {
		if _, err := e.LookPath(t.program); err != nil {
			missing = append(missing, t.program)
			packages = append(packages, t.pkg)
		}
	}
	if len(missing) > 0 {
		return warn(name, "hatch image build needs %s", strings.Join(missing, " and ")).fix("%s", install(packages...))
	}
	if err := e.DebianMirror(e.DebianMirrors); err != nil {
		return e.noMirror(name, err)
	}
	return pass(name, "images can be built")
}

// noMirror fails unless the default image is built already, so that VMs can run.
func (e examiner) noMirror(name string, err error) Check {
	c := fail(name, "%v", err)
	if _, statErr := e.Stat(e.DefaultImage); e.DefaultImage != "" && statErr == nil {
		c.Status = Warn
	}
	if errs.HasCode(err, recipe.KeyringMissing) {
		return c.fix("%s", install("debian-archive-keyring"))
	}
	if known, ok := errs.As(err); ok {
		return c.hint("%s", known.Hint)
	}
	return c.hint("run hatch doctor as root")
}

func (e examiner) image(context.Context) Check {
	const name = "image"
	if e.DefaultImage == "" {
		return pass(name, "the default image is not managed here")
	}
	if _, err := e.Stat(e.DefaultImage); err != nil {
		return warn(name, "the default image is not built").fix("hatch image build")
	}
	return pass(name, "the default image is built")
}

func (e examiner) service(ctx context.Context) Check {
	const name = "service"
	if _, err := e.LookPath("systemctl"); err != nil {
		return pass(name, "the host has no systemd; start hatchd by other means")
	}
	out, _ := e.Command(ctx, "systemctl", "is-enabled", "hatchd.service")
	if state := strings.TrimSpace(out); state == "enabled" {
		return pass(name, "hatchd.service is enabled")
	}
	return pass(name, "hatchd.service is not enabled (optional); hatchd does not start with the machine")
}
