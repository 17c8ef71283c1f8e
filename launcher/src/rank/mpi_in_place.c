/* MPI_IN_PLACE is a macro with a cast, which bindgen omits. */
#include <mpi.h>

const void *dw_mpi_in_place(void) { return MPI_IN_PLACE; }
