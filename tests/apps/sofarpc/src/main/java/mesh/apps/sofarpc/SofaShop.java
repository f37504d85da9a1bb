package mesh.apps.sofarpc;

import mesh.apps.Shop;

/** The shop as a SOFARPC service: its name is the service's host in the mesh. */
public interface SofaShop extends Shop {}
