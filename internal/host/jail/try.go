//go:build linux

package jail

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	tryUser  = 65534    // one without files
	tryLimit = 64 << 10 // of what a tried program may print, in bytes
)

// Try runs a program that ends by itself, such as a VMM that is asked for its version,
// in a jail like that of a machine. It returns what the program prints. The error says
// what the host lacks for the jail, or quotes the program. When ctx is done, the
// program is killed.
func Try(ctx context.Context, path string, args ...string) (output string, err error) {
	exe, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }()
	p, err := Start(ctx, Process{
		Path: exe, Args: args, UID: tryUser, GID: tryUser, Stdout: w, Stderr: w, OpenFiles: 64, FileSize: tryLimit,
		Root: &Root{Programs: Programs(exe), Devices: []string{os.DevNull}}, OwnPIDs: true, Filtered: true,
	})
	_ = w.Close()
	if err != nil {
		return "", err
	}
	defer func() { _ = p.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = p.Kill(context.Background()) })
	defer stop()
	printed, err := io.ReadAll(io.LimitReader(r, tryLimit))
	if err != nil {
		return "", err
	}
	_ = r.Close() // a program that prints more fails
	<-p.Exited()
	if st := p.Status(); st.Code != 0 || st.Signal != 0 {
		return "", fmt.Errorf("%s fails in a jail (%s): %s", exe, st, strings.TrimSpace(string(printed)))
	}
	return string(printed), nil
}
