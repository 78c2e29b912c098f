package httpapi

import (
	"reflect"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/machine"
)

// A template keeps its expiry when a client sends it back, also one without a limit.
func TestExpiryOfATemplateSentBack(t *testing.T) {
	for _, expiry := range []machine.Expiry{
		{TTL: time.Hour, Action: machine.ActionDelete},
		{Action: machine.ActionStop},
		{Action: machine.ActionDelete},
	} {
		shown := shownOverrides(machine.Overrides{Expiry: &expiry})
		if shown.TTLSeconds == nil { // an action alone would be refused when it is sent back
			t.Errorf("%+v is shown without a TTL", expiry)
		}
		got, err := (&door{}).overrides(t.Context(), shown, nil)
		if err != nil || !reflect.DeepEqual(got.Expiry, &expiry) {
			t.Errorf("%+v has become %+v, %v", expiry, got.Expiry, err)
		}
	}
}
