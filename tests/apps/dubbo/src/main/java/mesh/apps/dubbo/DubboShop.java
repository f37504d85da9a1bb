package mesh.apps.dubbo;

import java.util.concurrent.CompletableFuture;
import mesh.apps.Shop;

/** The shop as a Dubbo service: its name is the service's host in the mesh. */
public interface DubboShop extends Shop {
    /** As {@link #slow(int)}, with an answer that the provider completes later. */
    CompletableFuture<String> later(int millis);
}
