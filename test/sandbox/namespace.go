package sandbox

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Beyond calls do on the other side of the uplink, where the internet is
// played. What do opens stays there.
func Beyond(do func() error) error { return inNamespace("/run/netns/internet", do) }

// inNamespace calls do in another network namespace, given by its file. What do
// opens stays in there.
func inNamespace(file string, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := netns.GetFromPath(file)
	if err != nil {
		return fmt.Errorf("cannot open the namespace: %w", err)
	}
	defer other.Close()
	if err := netns.Set(other); err != nil {
		return fmt.Errorf("cannot enter the namespace: %w", err)
	}
	defer func() {
		if err := netns.Set(own); err != nil {
			panic(err) // the thread must not go on in the wrong namespace
		}
	}()
	return do()
}
