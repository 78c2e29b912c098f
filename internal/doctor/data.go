package doctor

import (
	"context"
	"path/filepath"
	"strings"
)

const (
	leastDiskMiB = 2 << 10
	goodDiskMiB  = 10 << 10
)

func (e examiner) disk(context.Context) Check {
	const name = "disk"
	free, err := e.FreeMiB(e.existing())
	switch {
	case err != nil:
		return warn(name, "cannot tell how much disk is free below %s: %v", e.DataDir, err)
	case free < leastDiskMiB:
		return fail(name, "%d MiB are free for %s; the default image and one VM need some %d MiB", free, e.DataDir, leastDiskMiB).
			hint("free some space, or set HATCH_DATA_DIR to a larger file system")
	case free < goodDiskMiB:
		return warn(name, "%d MiB are free for %s", free, e.DataDir).hint("VMs whose disks grow may fill it")
	}
	return pass(name, "%d MiB free for %s", free, e.DataDir)
}

// reflink passes either way: overlays work everywhere, reflinks are faster only
// where disks are copied.
func (e examiner) reflink(context.Context) Check {
	const name = "reflink"
	can, err := e.Reflink(e.existing())
	switch {
	case err != nil:
		return warn(name, "cannot tell whether files can share blocks: %v", err)
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
	if e.Driver == "fake" {
		return pass(name, "not needed with HATCH_VMM=fake")
	}
	if _, err := e.Stat(e.AgentPath); err != nil {
		return fail(name, "the program that runs in guests is not at %s", e.AgentPath).
			hint("put hatch-agent beside hatchd (make build does), or set HATCH_AGENT_PATH")
	}
	return pass(name, "the program that runs in guests is there")
}

// Programs that hatch image build runs, and the Debian package of each.
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
		return warn(name, "hatch image build needs %s", strings.Join(missing, " and ")).mendedBy("%s", install(packages...))
	}
	return pass(name, "images can be built")
}

func (e examiner) image(context.Context) Check {
	const name = "image"
	if e.DefaultImage == "" {
		return pass(name, "the default image is not managed here")
	}
	if _, err := e.Stat(e.DefaultImage); err != nil {
		return warn(name, "the default image is not built").mendedBy("hatch image build")
	}
	return pass(name, "the default image is built")
}

func (e examiner) service(ctx context.Context) Check {
	const name = "service"
	if _, err := e.LookPath("systemctl"); err != nil {
		return pass(name, "no systemd here; start hatchd by other means")
	}
	out, _ := e.Command(ctx, "systemctl", "is-enabled", "hatchd.service")
	if state := strings.TrimSpace(out); state == "enabled" {
		return pass(name, "hatchd.service is enabled")
	}
	return pass(name, "hatchd.service is not enabled (optional); hatchd does not start with the machine")
}
