// Package sockdiagtest is a fake kernel for sock_diag. Tests use it for answers that the real
// kernel does not send on demand.
package sockdiagtest
