package route

import (
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
)

func TestMain(m *testing.M) {
	hashCost = bcrypt.MinCost // else they take minutes with the race detector
	goleak.VerifyTestMain(m)
}
