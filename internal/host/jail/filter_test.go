//go:build linux && amd64

package jail

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestFilteredCalls(t *testing.T) {
	raw, err := filter()
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("it is not a BPF program")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	const x86 = unix.AUDIT_ARCH_X86_64
	for name, c := range map[string]struct {
		arch, number, first, second uint32
		want                        bpf.RetConstant
	}{
		"read":                {x86, unix.SYS_READ, 0, 0, allow},
		"accept":              {x86, unix.SYS_ACCEPT4, 0, 0, allow},
		"thread":              {x86, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD, 0, allow},
		"user namespace":      {x86, unix.SYS_CLONE, unix.CLONE_NEWUSER | unix.CLONE_VM, 0, refuse},
		"not clone":           {x86, unix.SYS_WRITE, unix.CLONE_NEWUSER, 0, allow},
		"first of refused":    {x86, refused[0], 0, 0, refuse},
		"last of refused":     {x86, refused[len(refused)-1], 0, 0, refuse},
		"io_uring":            {x86, unix.SYS_IO_URING_SETUP, 0, 0, refuse},
		"unshare":             {x86, unix.SYS_UNSHARE, 0, 0, kill},
		"run KVM":             {x86, unix.SYS_IOCTL, 9, 0xae80, allow},
		"offloads of a TAP":   {x86, unix.SYS_IOCTL, 9, unix.TUNSETOFFLOAD, allow},
		"MAC of a TAP":        {x86, unix.SYS_IOCTL, 9, unix.SIOCSIFHWADDR, refuse},
		"reserve blocks":      {x86, unix.SYS_IOCTL, 9, 0x40305828, refuse},
		"not ioctl":           {x86, unix.SYS_WRITE, 9, unix.SIOCSIFHWADDR, allow},
		"allocate":            {x86, unix.SYS_FALLOCATE, 9, 0, allow},
		"free blocks":         {x86, unix.SYS_FALLOCATE, 9, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, allow},
		"write zeros":         {x86, unix.SYS_FALLOCATE, 9, unix.FALLOC_FL_ZERO_RANGE, allow},
		"allocate beyond":     {x86, unix.SYS_FALLOCATE, 9, unix.FALLOC_FL_KEEP_SIZE, unsupported},
		"write zeros beyond":  {x86, unix.SYS_FALLOCATE, 9, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unsupported},
		"insert":              {x86, unix.SYS_FALLOCATE, 9, unix.FALLOC_FL_INSERT_RANGE, unsupported},
		"read of x32":         {x86, x32 | unix.SYS_READ, 0, 0, kill},
		"negative":            {x86, 0xffffffff, 0, 0, kill},
		"read of 32 bits":     {unix.AUDIT_ARCH_I386, 3, 0, 0, kill},
		"of another machine":  {unix.AUDIT_ARCH_AARCH64, unix.SYS_READ, 0, 0, kill},
		"number of a refused": {unix.AUDIT_ARCH_I386, unix.SYS_SOCKET, 0, 0, kill},
	} {
		t.Run(name, func(t *testing.T) {
			data := make([]byte, 64)
			for offset, value := range map[int]uint32{offsetNumber: c.number, offsetArch: c.arch, offsetFirst: c.first, offsetSecond: c.second} {
				binary.BigEndian.PutUint32(data[offset:], value) // as in the packets that the VM is for
			}
			got, err := vm.Run(data)
			if err != nil || uint32(got) != c.want.Val {
				t.Errorf("the verdict is %#x, %v; want %#x", got, err, c.want.Val)
			}
		})
	}
}
