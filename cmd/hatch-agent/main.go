// Command hatch-agent is the program inside a guest. As /init of the initramfs
// it boots the guest (internal/agent/boot); the copy of itself that it leaves
// running answers hatchd (internal/agent). Programs in the guest start it as
// hatch-agent keep-awake, to ask that copy for something.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hatchvm/hatch/internal/agent"
	"github.com/hatchvm/hatch/internal/agent/awake"
	"github.com/hatchvm/hatch/internal/agent/boot"
	"github.com/hatchvm/hatch/internal/logkey"
)

var version = "devel"

// agentName is argv[0] of the running agent. The sign in front makes systemd
// spare it in its last killing before a shutdown, so that the host sees the
// session end when the machine does.
const agentName = "@hatch-agent"

// initName is argv[0] that the kernel gives to the initramfs' init.
const initName = "/init"

func main() {
	var err error
	switch {
	case os.Args[0] == agentName:
		serve()
	case os.Getpid() == 1 && os.Args[0] == initName:
		err = bootGuest()
	case len(os.Args) > 1 && os.Args[1] == awake.Command:
		err = keepAwake(os.Stdout, os.Args[2:])
	default:
		err = fmt.Errorf("hatch-agent %s runs inside guests, where hatchd puts it; by hand there is only: hatch-agent %s", version, keepAwakeUsage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hatch-agent: "+err.Error())
		os.Exit(1)
	}
}

func bootGuest() error {
	mountErr := boot.Mount()
	log := kernelLog()
	if mountErr != nil {
		log.Error("cannot mount what a guest needs", logkey.Error, mountErr)
	}
	err := boot.Run(log, agentName)
	log.Error("cannot boot", logkey.Error, err)
	return err
}

func serve() {
	// Caught and dropped: what is ignored the processes started here would ignore too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	log := kernelLog()
	introduce(log)
	agent.New(log, version).Run(context.Background())
}

// introduce tells the kernel what to call this process, which was started
// through /proc/self/exe, and that a guest short of memory should lose
// something else first: nothing restarts the agent under an image's own init.
func introduce(log *slog.Logger) {
	for path, text := range map[string]string{
		"/proc/self/comm":          strings.TrimPrefix(agentName, "@"),
		"/proc/self/oom_score_adj": "-900",
	} {
		if err := os.WriteFile(path, []byte(text), 0); err != nil {
			log.Error("cannot introduce the agent to the kernel", logkey.Error, err)
		}
	}
}

// kernelLog logs to the kernel's log, which outlives the agent and reaches the
// console. Nothing secret is ever logged here.
func kernelLog() *slog.Logger {
	var out io.Writer = os.Stderr
	if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		out = &prefixed{w: kmsg}
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{} // the kernel adds its own
	}
	return a
}

// prefixed marks each record as ours, of the level "info".
type prefixed struct {
	w io.Writer
}

func (p *prefixed) Write(record []byte) (int, error) {
	if _, err := p.w.Write(append([]byte("<6>hatch-agent: "), record...)); err != nil {
		return 0, err
	}
	return len(record), nil
}
