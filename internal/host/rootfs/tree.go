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

// tree reads files of a root file system. Paths are those of systems whose
// /lib may be a link to usr/lib.
type tree interface {
	// read returns a regular file of up to limit bytes. Errors: fs.ErrNotExist.
	read(ctx context.Context, path string, limit int64) ([]byte, error)

	// hasCloudInit reports whether cloud-init is installed.
	hasCloudInit(ctx context.Context) (bool, error)

	// limits says, for a message, what this tree cannot tell; else "".
	limits() string

	close()
}

// cloudInit are the files that show that cloud-init is installed.
var cloudInit = []string{
	"/usr/bin/cloud-init", "/usr/lib/systemd/system/cloud-init.service", "/lib/systemd/system/cloud-init.service",
}

// openTree returns what can read the files of this format. It keeps a file of
// its own open.
func (i *Inspector) openTree(ctx context.Context, format string, f *os.File) (tree, error) {
	switch format {
	case "ext4":
		p, err := i.openProgram(ctx, f, "debugfs", "e2fsprogs", "ext4")
		return &extTree{p}, err
	case "squashfs":
		p, err := i.openProgram(ctx, f, "unsquashfs", "squashfs-tools", "squashfs")
		return &squashTree{p}, err
	}
	return sealed{format}, nil
}

// sealed is a tree that nothing reads.
type sealed struct{ format string }

func (sealed) read(context.Context, string, int64) ([]byte, error) { return nil, fs.ErrNotExist }
func (sealed) hasCloudInit(context.Context) (bool, error)          { return false, nil }
func (sealed) close()                                              {}

func (s sealed) limits() string {
	return " (hatchd does not look into " + s.format + ")"
}

// extTree reads ext2, ext3 and ext4 with debugfs, whose exit status tells
// nothing: what it says on standard error does.
type extTree struct{ *program }

func (t *extTree) limits() string { return "" }

func (t *extTree) ask(ctx context.Context, command, path string, limit int64) ([]byte, error) {
	res, err := t.run(ctx, limit, "-R", command+" "+path, imageArg)
	if err != nil {
		return nil, err
	}
	said := strings.ToLower(res.stderr)
	switch {
	case strings.Contains(said, "not found") || strings.Contains(said, "not a directory"):
		return nil, fs.ErrNotExist
	case res.code != 0 || complaint(said) != "":
		return nil, damagedTree("ext4", complaint(said))
	}
	return res.stdout, nil
}

// complaint returns the first line that debugfs says beside its own name.
func complaint(stderr string) string {
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

// read looks below /usr first: unsquashfs does not follow the link that /lib
// is on merged systems.
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

// damagedTree is what cannot be read though its superblock is right.
func damagedTree(format, said string) error {
	return fmt.Errorf("%w: %s: %.300s", errDamaged, format, strings.TrimSpace(said))
}

var errDamaged = errors.New("the file system is damaged")
