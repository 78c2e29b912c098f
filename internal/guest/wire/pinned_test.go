package wire

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Agents of earlier versions continue to run in sleeping VMs and in snapshots. Names may
// be added here, but never changed.

func TestOperationNamesArePinned(t *testing.T) {
	for op, want := range map[Op]string{
		OpHello: "hello", OpStatus: "status", OpWatch: "watch", OpShutdown: "shutdown",
		OpWoken: "woken", OpTrustSSH: "ssh.trust", OpReidentify: "recast", OpUsage: "usage", OpActivity: "activity", OpDial: "dial",
		OpExec: "process.exec", OpAttachProcess: "process.attach", OpStartProcess: "process.start",
		OpExecBytes: "process.exec.bytes", OpStartBytes: "process.start.bytes",
		OpProcesses: "process.list", OpProcess: "process.get", OpWriteProcess: "process.write",
		OpSignalProcess: "process.signal", OpResizeProcess: "process.resize", OpRemoveProcess: "process.remove",
		OpCloseOutput: "process.close",
		OpReadFile:    "file.read", OpWriteFile: "file.write", OpStatFile: "file.stat", OpListFiles: "file.list",
		OpMakeDirectory: "file.mkdir", OpRenameFile: "file.rename", OpRemoveFile: "file.remove",
		OpReadTree: "tree.read", OpWriteTree: "tree.write", OpWatchFiles: "file.watch", OpTailFile: "file.tail",
		OpWriteFileIf: "file.write.if", OpRemoveFileIf: "file.remove.if",
	} {
		if string(op) != want {
			t.Errorf("an operation is named %q, want %q", op, want)
		}
	}
}

func TestCodesArePinned(t *testing.T) {
	for code, want := range map[string]string{
		CodeUnknownOp: "unknown_op", CodeInvalid: "invalid", CodeFailed: "failed", CodeBusy: "busy", CodeRefused: "refused",
		CodeNoProcess: "process_not_found", CodeManyProcesses: "too_many_processes", CodeEnded: "process_ended",
		CodeStdinClosed: "stdin_closed", CodeNoTerminal: "no_terminal", CodeUser: "invalid_user", CodeDir: "invalid_cwd",
		CodeSignal: "invalid_signal", CodeOffset: "invalid_offset",
		CodeNotFound: "not_found", CodeExists: "exists", CodeIsDirectory: "is_a_directory", CodeNotDirectory: "not_a_directory",
		CodeNotEmpty: "not_empty", CodeNotFile: "not_a_file", CodeDiskFull: "disk_full", CodePermission: "permission",
		CodeTooLarge: "too_large", CodeOtherFilesystem: "other_filesystem", CodeChanged: "changed",
		CodeInvalidPath: "invalid_path", CodeInvalidOwner: "invalid_owner", CodeInvalidArchive: "invalid_archive",
		CodeTooManyWatches: "too_many_watches", CodeUnmet: "unmet",
		CloudInitAbsent: "absent", CloudInitDisabled: "disabled", CloudInitRunning: "running", CloudInitDone: "done", CloudInitError: "error",
		KindFile: "file", KindDirectory: "directory", KindSymlink: "symlink", KindOther: "other",
		ChangeCreate: "create", ChangeWrite: "write", ChangeRemove: "remove", ChangeRename: "rename", ChangeMode: "chmod", ChangeMissed: "missed",
	} {
		if code != want {
			t.Errorf("a code is %q, want %q", code, want)
		}
	}
}

func TestFramesArePinned(t *testing.T) {
	kinds := string([]byte{
		frameStdout, frameStderr, frameLost, frameExit, frameNoStdin, frameBusy, frameProcess, frameEnd,
		frameStdin, frameStdinEnd, frameStdinFlush,
		fileBegan, fileData, fileZeros, fileItem, fileBusy, fileEnd, fileError,
		dialData, dialEnd,
	})
	if want := "oelxnbp." + "iqf" + "adzibex" + "de"; kinds != want {
		t.Errorf("the kinds of frames are %q, want %q", kinds, want)
	}
	if words := []string{magic, wordSync, wordAck, wordStart, wordGo}; !slices.Equal(words, []string{"hatch-agent", "sync", "ack", "start", "go"}) {
		t.Errorf("the words of the handshake are %q", words)
	}
}

func TestMessageKeysArePinned(t *testing.T) {
	for _, m := range []struct {
		message any
		want    string
	}{
		{Request{}, "version op args"},
		{Reply{}, "ok code error result"},
		{Hello{}, "agent versions boot_id"},
		{Status{}, "addresses cloud_init going_down ssh"},
		{SSH{}, "certificates host_keys"},
		{SSHTrust{}, "authority principal"},
		{Address{}, "interface prefix"},
		{CloudInit{}, "status errors warnings"},
		{ShutdownArgs{}, "reboot"},
		{WokenArgs{}, "unix_ns seed"},
		{ReidentifyArgs{}, "unix_ns seed birth instance_id hostname nic cloud_init ssh_keys ssh"},
		{NIC{}, "mac address gateway"},
		{Self{}, "hostname mac address machine_id"},
		{Usage{}, "uptime_ms cpu_busy_ms load mem_total mem_available disk_total disk_free"},
		{Activity{}, "keep_awake_ms commands"},
		{DialArgs{}, "port"},
		{Terminal{}, "rows cols"},
		{ProcessSpec{}, "id argv shell env dir user tty stdin timeout_ns tag"},
		{Process{}, "spec pid started_ns exit output"},
		{ProcessExit{}, "code signal timed_out at_ns"},
		{ProcessArgs{}, "id from signal tty stderr"},
		{FileInfo{}, "path kind size mode uid gid user group mtime mtime_ns target"},
		{PathArgs{}, "path"},
		{ReadFileArgs{}, "path offset length"},
		{WriteFileArgs{}, "path mode owner parents if"},
		{MakeDirectoryArgs{}, "path mode owner parents"},
		{RenameFileArgs{}, "from to"},
		{RemoveFileArgs{}, "path recursive if"},
		{WriteTreeArgs{}, "path owner"},
		{WatchFilesArgs{}, "path recursive"},
		{TailFileArgs{}, "path lines follow"},
		{FileChange{}, "kind path from at at_ns"},
	} {
		of := reflect.TypeOf(m.message)
		if got := strings.Join(keys(of), " "); got != m.want {
			t.Errorf("%s has the keys %q, want %q", of, got, m.want)
		}
	}
}

// keys returns the JSON keys of a struct's fields, those of embedded structs included.
func keys(of reflect.Type) []string {
	var all []string
	for f := range of.Fields() {
		if f.Anonymous {
			all = append(all, keys(f.Type)...)
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		all = append(all, key)
	}
	return all
}
