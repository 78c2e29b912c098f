package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// tree reads files of a root file system, in which /lib may be a link to usr/lib.
type tree interface {
	// read returns a regular file of up to limit bytes. Errors: fs.ErrNotExist.
	read(ctx context.Context, path string, limit int64) ([]byte, error)

	// hasCloudInit reports whether cloud-init is installed.
	hasCloudInit(ctx context.Context) (bool, error)

	// limits says, for a message, what this tree cannot read; else "".
	limits() string

	close()
}

// cloudInit are files of an installed cloud-init.
var cloudInit = []string{
	"/usr/bin/cloud-init", "/usr/lib/systemd/system/cloud-init.service", "/lib/systemd/system/cloud-init.service",
}

// openTree returns the tree of a root file system in this format. It does not use
// f after it returns.
func (i *Inspector) openTree(ctx context.Context, format string, f *os.File) (tree, error) {
	switch format {
	case "ext4":
		p, err := i.openProgram(ctx, f, "debugfs", "e2fsprogs", "ext4")
		return &extTree{p}, err
	case "squashfs":
		p, err := i.openProgram(ctx, f, "unsquashfs", "squashfs-tools", "squashfs")
		return &squashTree{p}, err
	}
	return opaqueTree{format}, nil
}

// opaqueTree is a tree in a format that no program reads.
type opaqueTree struct{ format string }

func (opaqueTree) read(context.Context, string, int64) ([]byte, error) { return nil, fs.ErrNotExist }
func (opaqueTree) hasCloudInit(context.Context) (bool, error)          { return false, nil }
func (opaqueTree) close()                                              {}

func (t opaqueTree) limits() string { return " (hatchd does not read " + t.format + ")" }

// extTree reads ext2, ext3 and ext4 with debugfs, which reports errors on standard
// error and not by its exit status.
type extTree struct{ *program }

func (t *extTree) limits() string { return "" }

func (t *extTree) ask(ctx context.Context, command, path string, limit int64) ([]byte, error) {
	res, err := t.run(ctx, limit, "-R", command+" "+path, imageArg)
	if err != nil {
		return nil, err
	}
	stderr := strings.ToLower(res.stderr)
	switch {
	case strings.Contains(stderr, "not found") || strings.Contains(stderr, "not a directory"):
		return nil, fs.ErrNotExist
	case res.code != 0 || firstError(stderr) != "":
		return nil, damagedTree("ext4", firstError(stderr))
	}
	return res.stdout, nil
}

// firstError returns the first line of debugfs's stderr that is not its version.
func firstError(stderr string) string {
	for line := range strings.Lines(stderr) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			return line
		}
	}
	return ""
}

func (t *extTree) read(ctx context.Context, path string, limit int64) ([]byte, error) {
	about, err := t.ask(ctx, "stat", path, 64<<10)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(about, []byte("Type: regular")) {
		return nil, fs.ErrNotExist
	}
	return t.ask(ctx, "cat", path, limit)
}

func (t *extTree) hasCloudInit(ctx context.Context) (bool, error) {
	for _, path := range cloudInit {
		about, err := t.ask(ctx, "stat", path, 64<<10)
		if err == nil && bytes.Contains(about, []byte("Inode: ")) {
			return true, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// squashTree reads squashfs with unsquashfs.
type squashTree struct{ *program }

func (t *squashTree) limits() string { return "" }

// read tries the path below /usr first: unsquashfs does not follow the link /lib of
// merged systems.
func (t *squashTree) read(ctx context.Context, path string, limit int64) ([]byte, error) {
	content, err := t.cat(ctx, "usr"+path, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return t.cat(ctx, strings.TrimPrefix(path, "/"), limit)
	}
	return content, err
}

func (t *squashTree) cat(ctx context.Context, path string, limit int64) ([]byte, error) {
	res, err := t.run(ctx, limit, "-processors", "1", "-cat", imageArg, path)
	if err != nil {
		return nil, err
	}
	switch {
	case res.code == 0:
		return res.stdout, nil
	case strings.Contains(res.stderr, "no matches") || strings.Contains(res.stderr, "not a regular file") || strings.Contains(res.stderr, "symbolic link") || strings.Contains(res.stderr, "is a directory"):
		return nil, fs.ErrNotExist
	}
	return nil, damagedTree("squashfs", res.stderr)
}

func (t *squashTree) hasCloudInit(ctx context.Context) (bool, error) {
	args := []string{"-processors", "1", "-l", imageArg}
	for _, path := range cloudInit {
		args = append(args, strings.TrimPrefix(path, "/"))
	}
	res, err := t.run(ctx, 64<<10, args...)
	if err != nil {
		return false, err
	}
	if res.code != 0 {
		return false, damagedTree("squashfs", res.stderr)
	}
	for _, path := range cloudInit {
		if bytes.Contains(res.stdout, []byte(path+"\n")) {
			return true, nil
		}
	}
	return false, nil
}

// damagedTree is the error for a file system that a program cannot read.
func damagedTree(format, stderr string) error {
	return fmt.Errorf("%w: %s: %.300s", errDamaged, format, strings.TrimSpace(stderr))
}

var errDamaged = errors.New("the file system is damaged")
