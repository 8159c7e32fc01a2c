// Package sockdiagtest plays the kernel's side of sock_diag, for answers that the
// real one does not give on demand.
package sockdiagtest
